"""The same with an event loop: two sessions at once. Needs: pip install 'perdure[agent,local]'"""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

from perdure import AsyncAgent, SessionOptions


async def ask(agent: AsyncAgent, question: str) -> str:
    """One session with one turn; gives its id."""
    options = SessionOptions(
        file_session_store=".a3s/sessions", auto_save=True, session_id=f"async-{uuid.uuid4().hex[:8]}"
    )
    async with await agent.session(".", options) as session:
        result = await session.send(question)
        print(f"{question} {result.text}")
        return session.session_id


async def main() -> None:
    agent = await AsyncAgent.create(Path(__file__).with_name("agent.hcl"))
    ids = await asyncio.gather(*(ask(agent, f"What is the capital of {country}?") for country in ("France", "Italy")))
    for id in ids:
        resumed = await agent.resume_session(id, SessionOptions(file_session_store=".a3s/sessions"))
        print(f"{id}: {len(resumed.history())} messages")
        await resumed.close()


asyncio.run(main())
