"""A server that answers with the bytes a test gives it, and what servers may answer a chat completion with.

`REPLIES` are bytes to send, or (bytes, what comes after them): the connection is closed, aborted or left to hang.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import Sequence
from typing import Any, Literal

After = Literal["keep", "close", "abort", "hang"]
Raw = bytes | tuple[bytes, After]
GONE = "GONE"  # a key that the answer leaves out
SAID = {"role": "assistant", "content": "fine"}
USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
A_CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"a": 1}'}}
PROMPT = "the patient takes metformin"
KEY = "sk-very-secret-key"


class RawServer:
    """Answers every request with `reply`, in the event loop of the test; `requests` keeps (head, body)."""

    def __init__(self) -> None:
        self.reply: Raw = b""
        self.queue: list[Raw] = []  # answered first, each once
        self.requests: list[tuple[str, bytes]] = []

    async def start(self, tls: ssl.SSLContext | None = None) -> str:
        """Listens; returns the address without a path."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        return f"http{'s' if tls else ''}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                begun = await reader.readexactly(1)
                if begun == b"\x16":  # TLS, which is not spoken here
                    return
                head = (begun + await reader.readuntil(b"\r\n\r\n")).decode()
                lengths = [int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length")]
                self.requests.append((head, await reader.readexactly(sum(lengths))))
                reply = self.queue.pop(0) if self.queue else self.reply
                sent, after = reply if isinstance(reply, tuple) else (reply, "keep")
                writer.write(sent)
                await writer.drain()
                if after == "hang":
                    await reader.read(1)  # until the caller gives up
                if after == "abort":
                    writer.transport.abort()
                if after != "keep":
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def body(choice: Any = None, usage: Any = USAGE, **more: Any) -> dict[str, Any]:
    """Returns a chat completion; a key given as GONE is left out."""
    choices = [choice or a_choice()]
    whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return {name: value for name, value in (whole | more).items() if value is not GONE}


def a_choice(message: Any = SAID, finish: Any = "stop", **more: Any) -> dict[str, Any]:
    """Returns the one choice of a chat completion."""
    whole = {"index": 0, "finish_reason": finish, "message": message} | more
    return {name: value for name, value in whole.items() if value is not GONE}


def http(
    said: Any,
    status: str = "200 OK",
    headers: Sequence[str] = (),
    version: str = "1.1",
    type: str = "application/json",
    length: bool = True,
) -> bytes:
    """Returns an HTTP answer."""
    sent = said if isinstance(said, bytes) else json.dumps(said).encode()
    lines = [f"HTTP/{version} {status}", f"Content-Type: {type}", *headers]
    lines += [f"Content-Length: {len(sent)}"] if length else []
    return "\r\n".join([*lines, "", ""]).encode() + sent


def refused(status: int, message: str = "the server says no", *headers: str, **more: Any) -> bytes:
    """Returns an answer that is no success, as vLLM writes it."""
    return http({"error": {"message": message, "code": status, **more}}, f"{status} No", headers)


def _says(content: Any, **more: Any) -> bytes:
    return http(body(a_choice({"role": "assistant", "content": content} | more)))


def _calls(*calls: Any, finish: Any = "stop", content: Any = None) -> bytes:
    return http(body(a_choice({"role": "assistant", "content": content, "tool_calls": list(calls)}, finish)))


def _call(**changed: Any) -> dict[str, Any]:
    return {name: value for name, value in (A_CALL | changed).items() if value is not GONE}


def _function(name: Any = "f", **more: Any) -> dict[str, Any]:
    return _call(function={"name": name} | more)


def _tokens(*logprobs: Any, **more: Any) -> bytes:
    full = {"token": "x", "bytes": [1], "top_logprobs": []} | more
    return http(body(a_choice(logprobs={"content": [full | {"logprob": one} for one in logprobs]})))


def _used(usage: Any) -> bytes:
    return http(body(usage=usage))


def _plain(text: str) -> bytes:
    return json.dumps(body(a_choice({"role": "assistant", "content": text})), ensure_ascii=False).encode()


WHOLE = json.dumps(body()).encode()
PACKED = gzip.compress(WHOLE)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(WHOLE), WHOLE)
CUT = b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"id": "1", "choi'

REPLIES: dict[str, Raw] = {
    "plain": http(body()),
    # Log-probabilities.
    "tokens": _tokens(-0.5, -1, 0),
    "tokens of none": http(body(a_choice(logprobs={"content": []}))),
    "tokens that are null": http(body(a_choice(logprobs={"content": None}))),
    "a token without one": _tokens(None),
    "a token with a text": _tokens("-0.5"),
    "a token that is NaN": _tokens(float("nan")),
    "a token that is impossible": _tokens(float("-inf"), -1.0),
    "tokens as a list": http(body(a_choice(logprobs=[1]))),
    "tokens as a text": http(body(a_choice(logprobs="no"))),
    "tokens of the old completions": http(body(a_choice(logprobs={"tokens": ["a"], "token_logprobs": [-1.0]}))),
    # Thinking.
    **{
        f"says {text!r}": _says(text)
        for text in (
            "<think>hm</think>\n\nfine", "<think>hm", "hm</think>fine", "<think>\n\n</think>\n\nfine", "fine</think>",
            "<thinking>hm</thinking>fine", "x <think>hm</think>fine", '{"a": "<think>x</think>"}',
            "<think>a</think>b<think>c</think>d", "<think>a</thinking>b", "\n<think>hm</think>fine", "", "  \n", "a\0b",
        )
    },
    "reasoning_content": _says("fine", reasoning_content="hm"),
    "reasoning": _says("fine", reasoning="hm"),
    "both, the first null": _says("<think>x</think>fine", reasoning_content=None, reasoning="hm"),
    "both, the second odd": _says("fine", reasoning_content="hm", reasoning=5),
    "reasoning of half an emoji": _says("fine", reasoning_content="a\ud800"),
    "reasoning that is a number": _says("fine", reasoning_content=5),
    "reasoning that is a list": _says("fine", reasoning=["a"]),
    "reasoning alone": _says(None, reasoning_content="hm"),
    "thinking in both places": _says("<think>x</think>fine", reasoning_content="hm"),
    # Calls of tools.
    "a call": _calls(A_CALL, finish="tool_calls"),
    "a call and words": _calls(A_CALL, content="see"),
    "no calls": _calls(content="fine"),
    "a call with an object": _calls(_function(arguments={"a": 1})),
    "a call with null": _calls(_function(arguments=None)),
    "a call with nothing": _calls(_function()),
    "a call with a list": _calls(_function(arguments=[1])),
    "a call with what is no JSON": _calls(_function(arguments="{a")),
    "a call with half an emoji": _calls(_function(arguments='{"a": "\ud800"}')),
    "a call of nothing": _calls(_function(None, arguments="{}")),
    "a call of a number": _calls(_function(5, arguments="{}")),
    "a call without a function": _calls(_call(function=GONE)),
    "a call without a type": _calls(_call(type=GONE)),
    "a call whose id is a number": _calls(_call(id=7)),
    "a call of a custom tool": _calls({"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}),
    "a call with an index": _calls(_call(index=0)),
    "calls that are a text": _says(None, tool_calls="no"),
    "a call that is null": _calls(None),
    "a function call of old": _says(None, function_call={"name": "f", "arguments": "{}"}),
    # Content.
    **{
        f"content {value!r}": _says(value)
        for value in (None, 5, True, {"a": 1}, [{"type": "text", "text": "fine"}], "süß 漢字 😀", "half \ud800")
    },
    "content left out": http(body(a_choice({"role": "assistant"}))),
    "content not in UTF-8": http(WHOLE.replace(b"fine", b"f\xffne")),
    **{f"role {role!r}": _says("fine", role=role) for role in (None, "user", 5)},
    "role left out": http(body(a_choice({"content": "fine"}))),
    # How it ended.
    **{
        f"ended by {reason!r}": http(body(a_choice(finish=reason)))
        for reason in (
            "length", "content_filter", "tool_calls", "function_call", "abort", "error", "repetition", "max_tokens",
            "end_turn", "eos", "tool_use", "MAX_TOKENS", "SAFETY", "refusal", "sensitive", None, 5, ["a"], GONE,
        )
    },
    "ended by details": http(body(a_choice(finish=GONE, finish_details="length"))),
    # Usage.
    **{
        f"used {value!r}": _used(value)
        for value in (
            GONE, None, {}, [1], "no", 5, {"prompt_tokens": 7}, {"completion_tokens": 7}, {"input_tokens": 7},
            dict.fromkeys(USAGE), {"prompt_tokens": "10", "completion_tokens": "3"}, {"prompt_tokens": "x"},
            {"prompt_tokens": 10.0, "completion_tokens": 3.0}, {"prompt_tokens": 10.5}, {"prompt_tokens": -1},
            {"prompt_tokens": True}, {"prompt_tokens": 10**12}, {"prompt_tokens": float("nan")}, {"prompt_tokens": [1]},
            USAGE | {"total_tokens": "x"}, USAGE | {"prompt_tokens_details": {"cached_tokens": 4}},
            USAGE | {"prompt_tokens_details": None}, USAGE | {"completion_tokens_details": 5}, USAGE | {"cost": 0.5},
        )
    },
    # Choices.
    **{
        f"choices {value!r}": http(body(choices=value))
        for value in (
            [], GONE, None, "no", {"0": 1}, [None], ["no"], [{"index": 0}], [a_choice(None)], [a_choice("fine")],
            [{"index": 0, "text": "fine"}], [a_choice(), a_choice({"role": "assistant", "content": "other"})],
            [a_choice(), {}], [{"message": SAID}], [a_choice(index="a")],
        )
    },
    "all fields of vLLM": http(
        body(
            a_choice(
                SAID | {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": []},
                stop_reason=None, token_ids=None,
            ),
            service_tier=None, system_fingerprint=None, prompt_logprobs=None, kv_transfer_params=None,
        )
    ),
    **{
        f"{name} {value!r}": http(body(**{name: value}))
        for name in ("id", "created", "model", "object", "system_fingerprint")
        for value in (None, 5, 1.5, "x", GONE)
    },
    # Errors in a body that says 200.
    **{
        f"an error {value!r}": http({"error": value})
        for value in (
            {"message": "boom", "code": 500}, {"message": "boom", "code": 400}, {"message": "boom", "code": 429},
            {"message": "boom"}, {"message": "boom", "code": "bad"}, {"message": "boom", "code": "429"}, {"code": 404},
            {"message": {"a": 1}, "code": 400}, "boom", False,
        )
    },
    **{f"an answer with error {value!r}": http(body(error=value)) for value in ({"message": "no"}, {}, None, "", 0)},
    # No chat completion at all.
    **{
        f"says at all {text!r}": http(text)
        for text in (
            b"", b"  ", b"null", b"true", b"5", b'"hi"', b"[1, 2]", b"{}", b"\0\xff\xfegarbage",
            b"<html><body>hi</body></html>", b"data: {}\n\ndata: [DONE]\n\n",
        )
    },
    "cut short": http(WHOLE[:-20]),
    "more than JSON": http(WHOLE + b"x"),
    "a mark of byte order": http(b"\xef\xbb\xbf" + WHOLE),
    "nested without end": http(b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "choices twice": http(WHOLE[:-1] + b', "choices": []}'),
    "UTF-16": http(WHOLE.decode().encode("utf-16")),
    "Latin-1": http(_plain("süß").decode().encode("latin-1"), type="application/json; charset=latin-1"),
    "JSON that calls itself HTML": http(body(), type="text/html"),
    # Statuses.
    **{f"status {s}": http(body(), f"{s} Yes") for s in (201, 202, 206)},
    "status 204": http(b"", "204 No Content", length=False),
    **{f"status {s}, nowhere to go": http({}, f"{s} Moved") for s in (300, 301, 302, 307)},
    **{
        f"status {s}": refused(s)
        for s in (
            400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 413, 415, 418, 422, 424, 425, 426, 428, 429,
            431, 451, 499, 500, 501, 502, 503, 504, 505, 507, 511, 520, 522, 524, 529, 530, 599, 999,
        )
    },
    **{
        f"429 until {value!r}": refused(429, "slow down", f"Retry-After: {value}")
        for value in (
            "7", "0.5", "-5", "soon", "nan", "inf", "", "Wed, 21 Oct 2015 07:28:00 GMT",
            "Wed, 21 Oct 2099 07:28:00 GMT", "Wed, 21 Oct 2099 07:28:00 -0000",
            "Mon, 01 Jan 0001 00:00:00 GMT",
        )
    },
    "429 with two times": refused(429, "slow down", "Retry-After: 3", "Retry-After: 9"),
    "503 with a time": refused(503, "slow down", "Retry-After: 7"),
    "429 in HTML": http(b"<h1>slow</h1>", "429 No", ["Retry-After: 7"], type="text/html"),
    "502 in HTML": http(b"<html><h1>502 Bad Gateway</h1></html>", "502 Bad Gateway", type="text/html"),
    **{
        f"beyond the context, {s}": refused(s, "This model's maximum context length is 512 tokens. However, ...")
        for s in (400, 404, 422, 500)
    },
    "an unknown model": refused(404, "The model `m` does not exist.", type="NotFoundError", param="model"),
    "an unknown model, older": http({"object": "error", "message": "The model `m` does not exist."}, "404 No"),
    "FastAPI's 422": http({"detail": [{"loc": ["body"], "msg": "field required"}]}, "422 No"),
    **{f"{s} with the prompt and the key": refused(s, f"cannot read: {PROMPT} {KEY}") for s in (400, 401, 404, 500)},
    "an error with the prompt and the key": http({"error": {"message": f"no: {PROMPT} {KEY}", "code": 400}}),
    "an answer that is the prompt and the key": http(f"{PROMPT} {KEY}".encode()),
    "a field with the prompt and the key": http(body(choices=[{"message": {PROMPT: KEY}}])),
    # Connections.
    "closed at once": (b"", "close"),
    "aborted at once": (b"", "abort"),
    "closed in the head": (b"HTTP/1.1 200 OK\r\nContent-Le", "close"),
    "closed in the body": (CUT, "close"),
    "aborted in the body": (CUT, "abort"),
    "hangs at once": (b"", "hang"),
    "hangs in the body": (CUT, "hang"),
    "no HTTP": (b"hello world\r\n\r\n", "close"),
    "HTTP/1.0": (http(body(), version="1.0"), "close"),
    "HTTP/1.0 without a length": (http(body(), version="1.0", length=False), "close"),
    "chunks": CHUNKED + b"0\r\n\r\n",
    "chunks cut short": (CHUNKED, "close"),
    "chunks of no size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", "close"),
    "packed": http(PACKED, headers=["Content-Encoding: gzip"]),
    "packed, it says": (http(body(), headers=["Content-Encoding: gzip"]), "close"),
    "packed and broken": (http(PACKED[:-20] + b"x" * 20, headers=["Content-Encoding: gzip"]), "close"),
    "a length too long": (http(body()).replace(b"Length: ", b"Length: 9"), "close"),
    "a length that is none": (http(body()).replace(b"Length: ", b"Length: x"), "close"),
    "a long header": (http(body(), headers=["X-Long: " + "a" * 20_000]), "close"),
    "continue first": b"HTTP/1.1 100 Continue\r\n\r\n" + http(body()),
    "a cookie": http(body(), headers=["Set-Cookie: a=b"]),
}  # fmt: skip
