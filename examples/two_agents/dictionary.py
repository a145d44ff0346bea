"""A dictionary of five words in two languages."""

from __future__ import annotations

from agentmesh import ToolContext, register_tool
from agentmesh.errors import Permanent

WORDS = {
    "German": {"meine": "my", "rechnung": "invoice", "ist": "is", "falsch": "wrong", "danke": "thanks"},
    "French": {"ma": "my", "facture": "invoice", "est": "is", "fausse": "wrong", "merci": "thanks"},
}


@register_tool("look_up", needs=["dictionary:read"], timeout=5)
def look_up(ctx: ToolContext, text: str) -> dict[str, str]:  # noqa: ARG001
    """The text in English, with the language it was in. Your translation service is asked here."""
    words = text.lower().strip(" .!").split()
    for language, known in WORDS.items():
        if all(word in known for word in words):
            return {"language": language, "text": " ".join(known[word] for word in words)}
    raise Permanent("this is in no language that the dictionary has")
