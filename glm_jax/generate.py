"""python -m glm_jax.generate --checkpoint runs/quickstart --prompt "And God said, [MASK]." """

import argparse

from glm_jax.cli import log_to_stderr, one_line_errors


def main() -> None:
    """Fills the blanks of each prompt and prints the filled text."""
    parser = argparse.ArgumentParser(prog="python -m glm_jax.generate", description="Fill blanks with a trained GLM.")
    parser.add_argument("--checkpoint", required=True, help="folder of a run (its --workdir)")
    parser.add_argument("--prompt", action="append", required=True, help="text with [MASK]; may be given several times")
    parser.add_argument("--step", default="latest", help="a step's number, 'latest' or 'best'")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="longest answer")
    arguments = parser.parse_args()
    log_to_stderr()
    with one_line_errors():
        from glm_jax.decoding import fill
        from glm_jax.run_folder import load_run

        step = int(arguments.step) if arguments.step.isdigit() else arguments.step
        run = load_run(arguments.checkpoint, step)
        filled = fill(run.model, run.params, run.tokenizer, arguments.prompt, max_new_tokens=arguments.max_new_tokens)
    for result in filled:
        print(result.text)
        for number, answer in enumerate(result.answers, start=1):
            print(f"  blank {number}: {answer.strip()}")


if __name__ == "__main__":
    main()
