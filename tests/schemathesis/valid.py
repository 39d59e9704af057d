"""Hooks of the run with valid requests: they put in what the schema of the API cannot say.

Ids are those of what is stored. A cursor belongs to one list with one filter, so no generated one is valid. Days are at most
a year apart. The fields of an action depend on its type.
"""

import itertools
import json
import os

import schemathesis

NUMBERS = itertools.count()
DEAD_LETTERS = itertools.cycle(os.environ["DEAD_LETTERS"].split(","))


@schemathesis.hook
def map_path_parameters(context, parameters):
    stored = {
        "tenant_id": "acme",
        "conversation_id": f"c{next(NUMBERS) % 4}",
        "agent_id": "ada",
        "dead_letter_id": next(DEAD_LETTERS),
    }
    return {name: stored.get(name, value) for name, value in (parameters or {}).items()}


@schemathesis.hook
def map_query(context, query):
    query = dict(query or {})
    query.pop("cursor", None)
    stored = {"tenant_id": "acme", "text": "said"}
    if "/list/" in context.operation.path:
        stored |= {"from": "2026-01-01T00:00:00Z", "to": "2027-01-01T00:00:00Z"}
    else:
        stored |= {"from": "2026-01-01", "to": "2026-12-31"}
    if "from" in query or "to" in query:
        query |= {"from": "", "to": ""}
    if "text" in query:
        query.pop("status", None)
    return {name: stored.get(name, value) for name, value in query.items()}


@schemathesis.hook
def map_headers(context, headers):
    return {name: value for name, value in (headers or {}).items() if name != "Verbatim-After"}


@schemathesis.hook
def map_body(context, body):
    if context.operation.path != "/api/actions":
        return body
    number = next(NUMBERS)
    common = {"session_id": f"generated-{number % 7}"}
    actions = [
        {"action_type": "conversation.session_opened", **common},
        {"action_type": "conversation.save_message", "role": "user", "content": json.dumps(body), **common},
        {"action_type": "conversation.session_closed", **common},
        {"action_type": "conversation.feedback", "rating": 1 + number % 5, **common},
    ]
    return actions[number % 4] if number % 3 else actions
