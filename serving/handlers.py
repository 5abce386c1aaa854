"""The endpoints: transformers' handlers of chats, completions and responses, with requests read and answers completed.

transformers' handlers apply the chat template, call the generation manager and write OpenAI's objects. They know one
reason why an answer ended, count what they streamed, and put a completion's suffix behind it; here the reason and the
counts come from the request's `Job`, and the suffix is where the answer has to lead.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import TemplateError
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.response import ResponseHandler

from modeling_llada import LLaDAGenerationConfig

from .requests import Bounds, Job, RequestError, read_job

# What OpenAI sends after the last event of chats and completions.
DONE = "data: [DONE]\n\n"
# Under this name a request's job passes through transformers' handler, which hands its body on to our methods.
JOB = "job of the request"


class DiffusionRequests:
    """Comes before a handler of transformers among the base classes.

    Args:
        jobs: the requests in the server.
        bounds: what one request may ask for.
        options: as for the handler.
    """

    endpoint: str
    # The handler's, see transformers' `BaseHandler`.
    model_manager: Any

    def __init__(self, jobs: dict[str, Job], bounds: Bounds, **options: Any):
        super().__init__(**options)
        self.jobs, self.bounds = jobs, bounds

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """Read a request, have it answered, and complete the answer.

        Raises:
            RequestError: for what the client did wrong.
        """
        job = self.jobs[request_id] = read_job(body, self.endpoint, request_id, self.bounds)
        model = body.get("model") or self.model_manager.name
        body = {**body, "model": model, "stream": bool(body.get("stream")), JOB: job}
        tokenizer = self.model_manager.checkpoint.tokenizer
        if self.endpoint != "completions" and tokenizer.chat_template is None:
            raise RequestError(
                "The tokenizer of this model has no `chat_template`, which marks the turns of a conversation; send a "
                "`prompt` to /v1/completions."
            )
        if body.pop("suffix", None):
            job.suffix_ids = tokenizer(job.suffix, add_special_tokens=False)["input_ids"]
        try:
            response = await super().handle_request(body, request_id)  # type: ignore[misc]
        except TemplateError as error:
            raise RequestError(f"The chat template refuses these messages: {error}.", "messages") from error
        if isinstance(response, StreamingResponse):
            response.body_iterator = self._complete_events(response.body_iterator, job)
            return response
        return JSONResponse(complete(json.loads(response.body), job))

    def _validate_request(self, body: dict[str, Any]) -> None:
        """Nothing: `read_job` has checked the fields."""

    def _build_generation_config(self, body: dict[str, Any], model_generation_config: Any, use_cb: bool = False) -> Any:
        """The options of one request; transformers' own would be at least 1,024 tokens, and seed the whole process."""
        return make_config(body[JOB], model_generation_config, self.model_manager.checkpoint.model.config)

    async def _complete_events(self, events: Any, job: Job) -> AsyncIterator[str]:
        """The handler's events, each whole, with what it does not know."""
        async with contextlib.aclosing(events) as pieces:
            async for piece in pieces:
                yield "".join(complete_event(event, job) for event in piece.split("\n\n") if event)
        if self.endpoint != "responses":
            yield DONE


class Chats(DiffusionRequests, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    endpoint = "chat"


class Completions(DiffusionRequests, CompletionHandler):
    """`/v1/completions`; a `suffix` asks for the text between it and the prompt."""

    endpoint = "completions"


class Responses(DiffusionRequests, ResponseHandler):
    """`/v1/responses`."""

    endpoint = "responses"


def make_config(job: Job, options: Any, model_config: Any) -> Any:
    """The generation config of a request, checked and with all ids.

    Without a length the canvas grows block by block, whatever length the model's files give.

    Args:
        job: gives the options.
        options: the model's.
        model_config: gives the ids that neither sets.

    Raises:
        RequestError: for options that are not known, or contradict each other.
    """
    grows: dict[str, Any] = {"max_new_tokens": None, "max_length": None, "steps": None, "suffix_window": None}
    try:
        config = options.updated(**grows)
        if job.base is not None:
            config = LLaDAGenerationConfig.from_generation_config(job.base)
            if job.base.max_new_tokens is None and job.base.max_length is None:
                config = config.updated(**grows)
            ids = ("mask_token_id", "eos_token_id", "eot_token_id", "pad_token_id")
            config = config.updated(**{name: getattr(options, name) for name in ids if getattr(config, name) is None})
            if (config.num_return_sequences or 1) > 1:
                raise ValueError("`num_return_sequences` must be 1 here; send the request several times.")
        return config.completed(model_config, **job.options)
    except ValueError as error:
        raise RequestError(str(error).replace("`max_new_tokens`", "`max_tokens`")) from error


def complete(answer: dict[str, Any], job: Job) -> dict[str, Any]:
    """Put into an answer, or the last event of one, why it ended and what it cost; any other stays as it is."""
    error = answer.get("error")
    if isinstance(error, str):
        return RequestError(error, status=500).body()
    body = answer.get("response", answer)
    usage = body.get("usage")
    if usage is None:
        return answer
    for name, count in (("completion_tokens", job.num_tokens), ("output_tokens", job.num_tokens)):
        if name in usage:
            usage[name] = count
    usage["total_tokens"] = job.num_prompt_tokens + job.num_tokens
    usage |= job.usage()
    for choice in body.get("choices", ()):
        if choice.get("finish_reason") in ("stop", "length"):
            choice["finish_reason"] = job.finish_reason
    if body.get("object") == "response" and job.finish_reason == "length":
        body |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    return answer


def complete_event(event: str, job: Job) -> str:
    """`complete` for one server-sent event."""
    return f"data: {json.dumps(complete(json.loads(event.removeprefix('data: ')), job), ensure_ascii=False)}\n\n"
