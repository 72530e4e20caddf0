"""Fine-tuning: tasks as rows, their losses, and what a run of them needs; the trainer is the one of pretraining."""
