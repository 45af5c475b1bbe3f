"""Chats as JSON: checked, otherwise kept as they are given.

Messages have `role` (system, user, assistant, tool) and `content`; an assistant's may have `tool_calls` instead.
ShareGPT's `from` (human, gpt, system) and `value` are renamed.
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
        where: for messages
        filled: the source is columnar, so that keys that a message does not have are there with null; they are
            left out again (but `content`, which is null beside tool calls)

    Raises:
        RecordError: no list of messages, an unknown role, a message without content, or no assistant turn with
            content or tool calls.
    """
    given = _parsed(value, where, "messages")
    if not isinstance(given, list) or not given:
        shown = "an empty list" if given == [] else type(given).__name__
        raise RecordError(f"{where}: the messages are {shown}, expected a list of messages", "no list of messages")
    if filled:
        given = [_without_nulls(message) for message in given]
    messages = [_message(message, f"{where}, message {number}") for number, message in enumerate(given, 1)]
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise RecordError(
            f"{where}: the messages hold no assistant turn (roles: {roles}), so nothing would be learned; add the "
            "assistant's answer or remove the record",
            "no assistant turn",
        )
    return json.dumps(messages, ensure_ascii=False)


def tools_json(value: Any, where: str, *, filled: bool = False) -> str:
    """The descriptions of a chat's tools as a JSON list; empty where there are none.

    Raises:
        RecordError: neither a list of objects nor its JSON text.
    """
    if value is None or value == "" or value == []:
        return ""
    given = _parsed(value, where, "tools")
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise RecordError(f"{where}: the tools are {str(given)[:80]!r}, expected a list of objects", "no list of tools")
    if not given:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps([_without_nulls(tool) for tool in given] if filled else given, ensure_ascii=False)


def _parsed(value: Any, where: str, what: str) -> Any:
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise RecordError(f"{where}: the {what} are text and not JSON ({error.msg})", f"{what} are not JSON") from None


def _message(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise RecordError(f"{where}: {str(given)[:80]!r}, expected an object with role and content", "no message")
    message = given
    if "role" not in given and "from" in given:
        role = SHAREGPT_ROLES.get(given["from"])
        if role is None:
            raise RecordError(
                f"{where}: from {given['from']!r}, expected one of {', '.join(SHAREGPT_ROLES)}; mend or remove it",
                "unknown role",
            )
        others = {key: item for key, item in given.items() if key not in ("from", "value")}
        message = {"role": role, "content": given.get("value"), **others}
    role = message.get("role")
    if role not in ROLES:
        shown = f"role {role!r}" if "role" in message else f"no role among the keys {', '.join(map(repr, message))}"
        raise RecordError(f"{where}: {shown}, expected one of {', '.join(ROLES)}; mend or remove it", "unknown role")
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise RecordError(f"{where}: content is {type(content).__name__}, expected text", "content is no text")
    if role == "assistant":
        if not (content.strip() if isinstance(content, str) else content) and not message.get("tool_calls"):
            raise RecordError(
                f"{where}: an assistant turn with neither content nor tool_calls; fill it in or remove it",
                "empty assistant turn",
            )
    elif content is None:
        raise RecordError(f"{where}: a {role} message without content; fill it in or remove it", "no content")
    return message


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None or key == "content"}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
