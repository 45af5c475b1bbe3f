"""Chats as JSON: messages are checked but otherwise not changed.

A message has a `role` (system, user, assistant or tool) and `content`; an assistant message may have `tool_calls`
instead. ShareGPT's `from` (human, gpt or system) and `value` are renamed to `role` and `content`.
"""

from __future__ import annotations

import json
from typing import Any

from multilora.errors import RecordError

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def messages_json(value: Any, where: str, *, filled: bool = False) -> str:
    """The messages of a chat as a JSON list.

    Args:
        value: a list of messages, or that list as JSON text
        where: file and line, for errors
        filled: the source is columnar, so missing keys of a message appear as null; they are removed, except
            `content`, which may be null beside tool calls

    Raises:
        RecordError: not a list of messages, an unknown role, a message without content, or no assistant turn with
            content or tool calls.
    """
    chat = _parse(value, where, "messages")
    if not isinstance(chat, list) or not chat:
        shown = "an empty list" if chat == [] else type(chat).__name__
        raise RecordError(f"{where}: the messages are {shown}, expected a list of messages", "no list of messages")
    if filled:
        chat = [_without_nulls(message) for message in chat]
    messages = [_checked_message(message, f"{where}, message {number}") for number, message in enumerate(chat, 1)]
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise RecordError(
            f"{where}: the messages have no assistant turn (roles: {roles}), so nothing would be learned; add the "
            "assistant's answer or remove the record",
            "no assistant turn",
        )
    return _dump(messages, where, "messages")


def tools_json(value: Any, where: str, *, filled: bool = False) -> str:
    """The descriptions of a chat's tools as a JSON list; empty if there are none.

    Raises:
        RecordError: neither a list of objects nor such a list as JSON text.
    """
    if value is None or value == "" or value == []:
        return ""
    tools = _parse(value, where, "tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RecordError(f"{where}: the tools are {str(tools)[:80]!r}, expected a list of objects", "no list of tools")
    if not tools:
        return ""
    if isinstance(value, str):
        return _encodable(value, where, "tools")
    return _dump([_without_nulls(tool) for tool in tools] if filled else tools, where, "tools")


def _dump(value: Any, where: str, name: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:  # bytes and dates of parquet, NaN, deep nesting
        raise RecordError(
            f"{where}: the {name} are not JSON ({error}); fix or remove the record", f"{name} are not JSON"
        ) from None
    return _encodable(text, where, name)


def _encodable(text: str, where: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            f"{where}: the {name} have {text[error.start]!r}, half of a character (a lone surrogate); fix the data",
            "not Unicode",
        ) from None
    return text


def _parse(value: Any, where: str, name: str) -> Any:
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise RecordError(f"{where}: the {name} are text and not JSON ({reason})", f"{name} are not JSON") from None


def _checked_message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError(f"{where}: {str(value)[:80]!r}, expected an object with role and content", "no message")
    message = value
    if "role" not in message and "from" in message:
        role = SHAREGPT_ROLES.get(str(message["from"]))
        if role is None:
            raise RecordError(
                f"{where}: from {message['from']!r}, expected one of {', '.join(SHAREGPT_ROLES)}; fix or remove it",
                "unknown role",
            )
        other_keys = {key: item for key, item in message.items() if key not in ("from", "value")}
        message = {"role": role, "content": message.get("value"), **other_keys}
    role = message.get("role")
    if role not in ROLES:
        shown = f"role {role!r}" if "role" in message else f"no role among the keys {', '.join(map(repr, message))}"
        raise RecordError(f"{where}: {shown}, expected one of {', '.join(ROLES)}; fix or remove it", "unknown role")
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise RecordError(f"{where}: content is {type(content).__name__}, expected text", "content is no text")
    if role == "assistant":
        if not (content.strip() if isinstance(content, str) else content) and not message.get("tool_calls"):
            raise RecordError(
                f"{where}: an assistant turn with neither content nor tool_calls; add content or remove it",
                "empty assistant turn",
            )
    elif content is None:
        raise RecordError(f"{where}: a {role} message without content; add content or remove it", "no content")
    return message


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None or key == "content"}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
