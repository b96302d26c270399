"""What every message goes through before it is kept: api keys are masked, the user's redactor is applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from perdure.errors import ConfigError
from perdure.secrets import SecretMasker

__all__ = ["Cleaner"]

# What a model signed or what is no text must stay as it is.
_UNTOUCHED = frozenset({"thinking", "redacted_thinking", "image"})


class Cleaner:
    """Masks secrets everywhere in a message and redacts its texts. Memory, disk and later turns see the same."""

    def __init__(self, masker: SecretMasker, redact: Callable[[str], str] | None) -> None:
        self.masker = masker
        self._redact = redact

    @property
    def redacts(self) -> bool:
        """Whether there is a redactor, besides the masking of api keys."""
        return self._redact is not None

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message as it is kept."""
        masked = self.masker.value(dict(message))
        if self._redact is None:
            return masked
        return {**masked, "content": self._content(masked["content"])} if "content" in masked else masked

    def _content(self, content: Any) -> Any:
        if isinstance(content, str):
            return self._text(content)
        if isinstance(content, (list, tuple)):
            return [self._block(block) for block in content]
        return content

    def _block(self, block: Any) -> Any:
        if not isinstance(block, Mapping) or block.get("type") in _UNTOUCHED:
            return block
        kind = block.get("type")
        if kind == "tool_use":
            return {**block, "input": self._deep(block.get("input"))}
        if kind == "tool_result":
            return {**block, "content": self._content(block.get("content"))}
        return {**block, "text": self._text(block["text"])} if isinstance(block.get("text"), str) else block

    def _deep(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {key: self._deep(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._deep(item) for item in value]
        return value

    def _text(self, text: str) -> str:
        assert self._redact is not None
        try:
            kept = self._redact(text)
        except Exception as error:
            # Rather not kept at all than kept unredacted; the text itself is not for an error message.
            raise ConfigError(
                f"redact raised {type(error).__name__}; the message is not kept", option="redact"
            ) from None
        if not isinstance(kept, str):
            raise ConfigError(f"redact gave a {type(kept).__name__}, not a str", option="redact")
        return kept
