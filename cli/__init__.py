"""The `llada` command: one Typer application, whose heavy imports wait until a command needs them."""
