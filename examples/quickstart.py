"""A session that is saved at every step, left, and taken up again. Needs: pip install 'perdure[agent,local]'"""

from __future__ import annotations

import uuid
from pathlib import Path

from perdure import Agent, SessionOptions

agent = Agent.create(Path(__file__).with_name("agent.hcl"))
options = SessionOptions(file_session_store=".a3s/sessions", auto_save=True)
session_id = f"quickstart-{uuid.uuid4().hex[:8]}"

with agent.session(".", options, session_id=session_id) as session:
    result = session.send("What is the capital of France?")
    print(result.text)
    print(f"{result.usage.total_tokens} tokens, {session.save().location}")

# Later, in another process: everything is there.
with agent.resume_session(session_id, options) as resumed:
    print(f"Resumed with {len(resumed.history())} messages")
    for event in resumed.stream("And of Italy?"):
        if event.type == "text_delta":
            print(event.text, end="", flush=True)
        elif event.type == "saved":
            print(f" [revision {event.revision} is on disk]", flush=True)
