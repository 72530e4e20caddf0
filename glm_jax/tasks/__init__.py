"""Every NLP task as filling blanks (paper, sections 2.3 and 3): examples, a prompt, and a score."""
