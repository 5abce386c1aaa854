"""The command `llada push`: shows what would be published, or publishes it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import reports_errors
from .screen import busy

Names = list[str] | None
Files = list[Path] | None
CARD = "Card"


@reports_errors
def push(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of a model or a LoRA adapter.", show_default=False)
    ] = None,
    repo_id: Annotated[
        str | None,
        typer.Argument(metavar="USER/NAME", help="Repository on the Hub, created if necessary.", show_default=False),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME",
            help="Publish the page of `llada demo` as a Space, with the model in DIR or the bundled one.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and list the files; upload nothing.")
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to, created if necessary.")] = None,
    message: Annotated[str | None, typer.Option(help="Text of the commit.")] = None,
    license: Annotated[
        str | None, typer.Option(help="Licence of the weights: apache-2.0, mit, other …", rich_help_panel=CARD)
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the model this one came from.", rich_help_panel=CARD)
    ] = None,
    dataset: Annotated[Names, typer.Option(help="Hub id of training data; repeatable.", rich_help_panel=CARD)] = None,
    language: Annotated[Names, typer.Option(help="Language code, e.g. en; repeatable.", rich_help_panel=CARD)] = None,
    tag: Annotated[Names, typer.Option(help="Further tag of the card; repeatable.", rich_help_panel=CARD)] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file of the training's options.", rich_help_panel=CARD)
    ] = None,
    results: Annotated[
        Files,
        typer.Option(help="JSON file of an evaluation: a record or lm-eval's; repeatable.", rich_help_panel=CARD),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text that the card's example continues.", rich_help_panel=CARD)
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Show a chat in the card too.", rich_help_panel=CARD)] = False,
) -> None:
    """Publish a model or a LoRA adapter on the Hub: code, weights, tokenizer, options and a card, in one commit.

    A new repository is private. A README.md in DIR is uploaded with the facts given here added; without one, a card is
    written.
    """
    from llada_checkpoints import BUNDLED_MODEL
    from llada_core.hub import is_hub_id, require_token

    if space is not None:
        if repo_id is not None:
            raise ValueError(f"`--space` names the repository ({space}), so `{repo_id}` is one too many; leave it out.")
        folder, repo_id = folder or BUNDLED_MODEL, space
    if folder is None or repo_id is None:
        raise ValueError("`DIR` and `USER/NAME` are needed: llada push runs/my-sft user/name.")
    if not is_hub_id(repo_id, with_owner=True):
        raise ValueError(f"`repo_id` must be user/name, got {repo_id!r}.")
    if not folder.expanduser().is_dir():
        raise FileNotFoundError(f"There is no folder `{folder}`; name the folder of a model or an adapter.")
    if not dry_run:
        require_token()
    with busy("Checking the files"):
        from llada_conversion import CardFacts, prepare_upload, push_upload

    given: dict[str, Any] = {"license": license, "base_model": base_model, "recipe": recipe, "prompt": prompt}
    lists = {"datasets": dataset, "languages": language, "tags": tag, "results": results}
    given |= {name: tuple(values) for name, values in lists.items() if values}
    facts = CardFacts(is_chat=chat, **{name: value for name, value in given.items() if value is not None})
    upload = prepare_upload(folder, repo_id, facts)
    if space is not None:
        upload = _space_of(upload)
    if not dry_run:
        print(push_upload(upload, private=not public, revision=revision, message=message))
        return
    size = sum(upload.size(name) for name in upload.files)
    place = f"{repo_id}{f' ({revision})' if revision else ''}"
    print(f"{len(upload.files)} files, {size / 2**20:.1f} MiB, would go to {place}:")
    for name in upload.files:
        print(f"  {upload.size(name):>14,}  {name}")
    if upload.left_out:
        print(f"Not uploaded: {', '.join(upload.left_out)}")


def _space_of(upload: Any) -> Any:
    """Put the demo around the model that is going to be uploaded."""
    from llada_conversion.publish import Upload
    from llada_core.lazy import requires_extra
    from llada_serving.space import space_files

    if upload.kind != "model":
        raise ValueError("`--space` needs a whole model, got an adapter; merge it into its base model first.")
    with requires_extra("demo", "`--space`"):
        import gradio  # noqa: F401

        files = space_files(upload.files, upload.repo_id.partition("/")[2])
    return Upload(upload.repo_id, "space", files, upload.left_out)
