"""The demo: a page on which a person chats with a model or has gaps filled, and sees the canvas after every pass.

`llada demo` starts it. The file is also the `app.py` of a Space, which `llada push --space` uploads; the model then
lies in the folder `model` beside it, or is the Hub id in the variable `LLADA_MODEL`.
"""

import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from llada_core.animation import CONFIDENCE_COLOURS, PASS_COLOURS, colour, tint
from llada_core.conversation import Conversation
from llada_core.loading import Checkpoint, load_checkpoint
from llada_core.recorder import Frame, Recorder, token_texts

# Where the model of a Space lies.
MODEL_FOLDER = Path(__file__).with_name("model")
# A run of _ that is no part of a word is a gap; the space before it belongs to the first of its tokens.
GAP = re.compile(r" ?(?<!\w)(_+)(?!\w)")
MAX_ANSWER = 256
QUESTIONS = ["What is the largest planet in the solar system?", "What is the capital of France?", "Who are you?"]
GAPS = ["The capital of _ is Rome.", "The largest planet in the _ _ is Jupiter.", "A baby cat is called a _ _ _."]
BY = {"pass": "Pass", "confidence": "Confidence"}

CSS = f"""
.gradio-container {{ max-width: 1080px !important; margin: 0 auto !important; }}
.intro h1 {{ font-size: 1.6rem; font-weight: 650; letter-spacing: -.01em; margin: .4rem 0 .2rem; }}
.intro p {{ color: var(--body-text-color-subdued); margin: 0; }}
.paper {{ border: 1px solid var(--border-color-primary); border-radius: 14px; padding: 18px 20px; min-height: 190px;
  background: var(--background-fill-primary); font-size: 1.05rem; line-height: 1.95; overflow-wrap: anywhere; }}
.paper .hint {{ color: var(--body-text-color-subdued); }}
.me {{ line-height: 1.5; width: fit-content; max-width: 85%; margin: 4px 0 12px auto; padding: 6px 14px;
  border-radius: 14px 14px 4px 14px; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); white-space: pre-wrap; }}
.it {{ margin: 4px 0 14px; white-space: pre-wrap; }}
.tok {{ border-radius: 5px; padding: 2px 1px; background: color-mix(in srgb, var(--c) 26%, transparent); }}
.dark .tok {{ background: color-mix(in srgb, var(--c) 42%, transparent); }}
.tok.new {{ box-shadow: 0 0 0 2px var(--c); }}
.tok.end, .mask {{ display: inline-block; width: 1.5em; height: 1.15em; margin: 0 1.5px; vertical-align: -.2em;
  border-radius: 5px; }}
.mask {{ background: var(--neutral-200); }}
.dark .mask {{ background: var(--neutral-700); }}
.under {{ display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: center; justify-content: space-between;
  margin: 8px 4px 0; font-size: .9rem; color: var(--body-text-color-subdued); min-height: 1.6em; }}
.under b {{ color: var(--body-text-color); font-weight: 600; }}
.scale {{ display: inline-block; width: 84px; height: 9px; border-radius: 5px; margin: 0 7px; opacity: .75; }}
.scale.pass {{ background: linear-gradient(90deg, {", ".join(PASS_COLOURS)}); }}
.scale.confidence {{ background: linear-gradient(90deg, {", ".join(CONFIDENCE_COLOURS)}); }}
"""
INTRO = """<div class="intro"><h1>Text by unmasking</h1><p>{name} starts from masked tokens and fills in the ones it is
most sure of first. Every cell is a token; move the slider to go back through the passes.</p></div>"""


class Demo:
    """What the page does with one model.

    Args:
        checkpoint: model, tokenizer and the options its files set.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint

    def chat(
        self, text: str, turns: list[dict[str, str]], by: str, length: int, block: int, *settings: Any
    ) -> Iterator[tuple]:
        """Answer a turn; yield the page after every pass: see `_page`, then the turns and the text box."""
        checkpoint = self.checkpoint
        room = checkpoint.model.config.max_sequence_length - int(length)
        conversation = Conversation(checkpoint.tokenizer, room)
        conversation.turns = list(turns)
        if not text.strip():
            raise gr.Error("Type a question first.", duration=4)
        try:
            ids, _ = conversation.ask(text.strip())
        except ValueError as error:
            raise gr.Error(str(error)) from None
        options = {"max_new_tokens": int(length), "block_length": int(block)}
        frames: list[Frame] = []
        for frames in self._run(checkpoint.model.generate, ids, checkpoint.stop_ids, options, *settings):
            yield *self._page(frames, len(frames) - 1, by, conversation.turns, is_running=True), gr.skip(), ""
        conversation.reply("".join(token_texts(frames[-1].ids, checkpoint.tokenizer)).strip())
        yield *self._page(frames, len(frames) - 1, by, conversation.turns), conversation.turns, ""

    def fill(self, text: str, by: str, length: int, block: int, *settings: Any) -> Iterator[tuple]:
        """Fill the gaps of a text; yield the page after every pass, see `_page`."""
        tokenizer = self.checkpoint.tokenizer
        masked = GAP.sub(lambda gap: tokenizer.mask_token * len(gap[1]), text.strip())
        ids = tokenizer(masked)["input_ids"]
        if tokenizer.mask_token_id not in ids:
            raise gr.Error("Write _ where a word is missing, one _ for each token.", duration=6)
        longest = self.checkpoint.model.config.max_sequence_length
        if len(ids) > longest:
            raise gr.Error(f"The text has {len(ids)} tokens, but the model reads {longest}; shorten it.")
        frames: list[Frame] = []
        for frames in self._run(self.checkpoint.model.infill, ids, (), {}, *settings):
            yield self._page(frames, len(frames) - 1, by, is_running=True)
        yield self._page(frames, len(frames) - 1, by)

    def replay(self, number: int, frames: list[Frame], by: str, turns: list[dict[str, str]] | None = None) -> Any:
        """Show the canvas after pass `number` again."""
        return self._page(frames, min(int(number), len(frames) - 1), by, turns)[0] if frames else gr.skip()

    def _page(
        self,
        frames: list[Frame],
        number: int,
        by: str,
        turns: list[dict[str, str]] | None = None,
        is_running: bool = False,
    ) -> tuple[str, Any, list[Frame]]:
        """The paper, the slider, which can be moved once the run is over, and the frames themselves."""
        canvas = canvas_html(frames[number], number, by, self.checkpoint.tokenizer)
        paper = canvas if turns is None else conversation_html(turns, canvas)
        slider = gr.update(maximum=max(1, len(frames) - 1), value=number, interactive=not is_running)
        return f'<div class="paper" role="log">{paper}</div>{under_html(frames, number, by)}', slider, frames

    def _run(
        self,
        call: Any,
        ids: list[int],
        stop_ids: Any,
        options: dict[str, Any],
        threshold: float,
        temperature: float,
        seed: float,
        pause: float,
    ) -> Iterator[list[Frame]]:
        """Call `generate` or `infill` in a thread, and yield the frames so far after every pass.

        A page that nobody looks at any more closes this iterator, and the call ends with its next pass.
        """
        arrived: queue.Queue[Exception | None] = queue.Queue()
        closed = threading.Event()

        def on_frame() -> None:
            if closed.is_set():
                raise InterruptedError
            arrived.put(None)

        tokenizer, device = self.checkpoint.tokenizer, self.checkpoint.model.device
        recorder = Recorder(tokenizer, stop_ids, on_frame=on_frame)
        if threshold < 1:
            options["threshold"] = threshold

        def work() -> None:
            try:
                generator = torch.Generator(device).manual_seed(int(seed))
                call(
                    torch.tensor([ids], device=device),
                    generation_config=self.checkpoint.options,
                    streamer=recorder,
                    logits_processor=[recorder],
                    generator=generator,
                    temperature=temperature,
                    **options,
                )
                arrived.put(StopIteration())
            except Exception as error:
                arrived.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            num_passes = 0
            while (event := arrived.get()) is None:
                if not num_passes:
                    yield recorder.frames[:1]
                    time.sleep(pause)
                num_passes += 1
                yield recorder.frames[: num_passes + 1]
                time.sleep(pause)
            if not isinstance(event, StopIteration):
                raise gr.Error(str(event)) from event
            yield recorder.frames
        finally:
            closed.set()


def canvas_html(frame: Frame, number: int, by: str, tokenizer: Any) -> str:
    """The canvas after pass `number`: a cell for each mask, and for each token that was committed."""
    parts = []
    for token, text, at, confidence in zip(
        frame.ids, token_texts(frame.ids, tokenizer), frame.passes, frame.confidences
    ):
        place = tint(at, confidence, number, by)
        if token == tokenizer.mask_token_id:
            parts.append('<i class="mask"></i>')
        elif place is None:
            parts.append(escape(text))
        else:
            body = text.strip()
            lead = text[: text.index(body)] if body else text
            kind = "tok" + " end" * (not body) + " new" * (at == number)
            label = f"pass {at}, {confidence:.0%}" + (f", {tokenizer.decode([token])}" if not text else "")
            parts.append(
                f'{escape(lead)}<span class="{kind}" style="--c:{colour(place, by)}" title="{escape(label)}">'
                f"{escape(body)}</span>{escape(text[len(lead) + len(body) :])}"
            )
    return "".join(parts)


def conversation_html(turns: list[dict[str, str]], canvas: str) -> str:
    """The turns of a conversation, of which the canvas is the last answer."""
    turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    said = [
        f'<div class="{"me" if turn["role"] == "user" else "it"}">{escape(turn["content"])}</div>' for turn in turns
    ]
    return "".join(said) + f'<div class="it canvas">{canvas}</div>'


def under_html(frames: list[Frame], number: int, by: str) -> str:
    """What a run has cost up to a pass, and what the colours mean."""
    frame = frames[number]
    rate = f"{frame.num_committed / number:.1f} per pass" if number else "only masks"
    cost = f"{len(frames) - 1} · {frame.num_committed} tokens · {rate} · {frame.seconds:.2f} s"
    first, last = ("first pass", "newest") if by == "pass" else ("doubtful", "certain")
    legend = f'{first}<span class="scale {by}"></span>{last}'
    return f'<div class="under"><span><b>Pass {number}</b> of {cost}</span><span>{legend}</span></div>'


def build(checkpoint: Checkpoint, name: str) -> gr.Blocks:
    """Make the page.

    Args:
        checkpoint: the model.
        name: what the page calls it.
    """
    demo = Demo(checkpoint)
    with gr.Blocks(title=f"{name}: text by unmasking", analytics_enabled=False) as page:
        gr.HTML(INTRO.format(name=escape(name)))
        with gr.Row():
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Chat"):
                    chat = _tab("Ask a question", "Send", QUESTIONS, "Ask something; the answer appears here.")
                with gr.Tab("Fill in"):
                    fill = _tab(
                        "Text with gaps, one _ for each token", "Fill in", GAPS, "The filled text appears here."
                    )
            with gr.Column(scale=1, min_width=240):
                settings = _settings(checkpoint)
        turns = gr.State([])
        seen: list[Any] = [chat["paper"], chat["slider"], chat["frames"]]
        _connect(
            chat,
            demo.chat,
            [chat["text"], turns, chat["by"], *settings],
            [*seen, turns, chat["text"]],
            demo.replay,
            [turns],
        )
        filled = [fill["paper"], fill["slider"], fill["frames"]]
        _connect(fill, demo.fill, [fill["text"], fill["by"], *settings], filled, demo.replay, [])
    return page


def _tab(label: str, action: str, examples: list[str], hint: str) -> dict[str, Any]:
    """The components of a tab, by name."""
    made: dict[str, Any] = {"frames": gr.State([])}
    made["paper"] = gr.HTML(f'<div class="paper"><span class="hint">{hint}</span></div>')
    with gr.Row():
        made["slider"] = gr.Slider(
            0, 1, value=0, step=1, label="After pass", interactive=False, buttons=[], scale=3, min_width=200
        )
        choices = [(label, value) for value, label in BY.items()]
        made["by"] = gr.Radio(choices, value="pass", label="Colour", scale=1, min_width=200)
    with gr.Row(equal_height=True):
        made["text"] = gr.Textbox(label=label, lines=1, max_lines=6, scale=5, min_width=200, max_length=8000)
        made["action"] = gr.Button(action, variant="primary", scale=1, min_width=100)
    gr.Examples(examples, made["text"], label="Try")
    return made


def _settings(checkpoint: Checkpoint) -> list[Any]:
    """The options beside the page, in the order in which `Demo.chat` takes them."""
    options = checkpoint.options
    longest = min(MAX_ANSWER, checkpoint.model.config.max_sequence_length // 2)
    length, block = min(options.max_new_tokens or 64, longest), min(options.block_length, longest)

    def slider(lowest: float, highest: float, value: float, step: float, label: str, info: str) -> gr.Slider:
        return gr.Slider(lowest, highest, value=value, step=step, label=label, info=info, buttons=[])

    return [
        slider(8, longest, length, 1, "Length of the answer", "tokens of the canvas"),
        slider(1, longest, block, 1, "Block length", "blocks are filled from left to right"),
        slider(0.5, 1, 0.9, 0.05, "Threshold", "tokens this sure come at once; 1: one per pass"),
        slider(0, 1.5, 0, 0.1, "Temperature", "0: always the most probable token"),
        gr.Number(0, label="Seed", precision=0),
        slider(0, 1, 0.15, 0.05, "Pause", "seconds to look at each pass"),
    ]


def _connect(
    tab: dict[str, Any], run: Any, inputs: list[Any], outputs: list[Any], replay: Any, turns: list[Any]
) -> None:
    """Let button and Enter run the model, and slider and colours show its passes again."""
    quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    again: dict[str, Any] = {"fn": replay, "inputs": [tab["slider"], tab["frames"], tab["by"], *turns]}
    again |= {"outputs": tab["paper"], "queue": False, **quietly}
    done = gr.on([tab["action"].click, tab["text"].submit], run, inputs, outputs, **quietly)
    done.then(**again)  # the colours may have been changed meanwhile
    gr.on([tab["slider"].input, tab["by"].input], **again)


def launch(checkpoint: Checkpoint, name: str, **options: Any) -> Any:
    """Serve the page until the process is interrupted.

    Args:
        checkpoint: the model.
        name: what the page calls it.
        options: of Gradio's `launch`, such as `server_name`, `server_port`, `inbrowser` and `prevent_thread_lock`.
    """
    theme = gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],  # none from the network
        font_mono=["ui-monospace", "monospace"],
    )
    return build(checkpoint, name).launch(theme=theme, css=CSS, footer_links=[], ssr_mode=False, **options)


if __name__ == "__main__":
    model = os.environ.get("LLADA_MODEL") or (MODEL_FOLDER if MODEL_FOLDER.is_dir() else None)
    launch(load_checkpoint(model), os.environ.get("LLADA_MODEL", "LLaDA"))
