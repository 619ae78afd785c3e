"""Does an answer meet its expectation? Pure."""

import json
import re
from typing import Any, NoReturn

from jsonschema.exceptions import SchemaError, best_match
from jsonschema.validators import Draft202012Validator, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from finetune_runtime.contract.evaluation import Expectation

_SHOWN = 120  # characters of what a user or a model wrote, in a sentence


def fault(expect: Expectation) -> str:
    """What is wrong with the expectation itself; empty when it can be checked."""
    try:
        re.compile(expect.regex)
    except (re.error, OverflowError, RecursionError) as error:
        return f"expect.regex is not a regular expression: {error}"
    if not expect.json_schema:
        return ""
    try:
        schema = json.loads(expect.json_schema)
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        return f"expect.jsonSchema is not a JSON schema: {shown(error.message)}"
    except (ValueError, RecursionError) as error:
        return f"expect.jsonSchema is not JSON: {error}"
    return ""


def misses(expect: Expectation, answer: str, seconds: float) -> list[str]:
    """What the answer lacks, one sentence each; empty when it meets the expectation. `expect` has no fault; `seconds`: time for the whole answer."""
    folded = answer.casefold()
    found = [f"does not contain {json.dumps(text, ensure_ascii=False)}" for text in expect.contains if text.casefold() not in folded]
    found += [f"contains {json.dumps(text, ensure_ascii=False)}" for text in expect.not_contains if text.casefold() in folded]
    if expect.regex and not re.search(expect.regex, answer):
        found.append(f"does not match {expect.regex}")
    if expect.json_schema and (why := _schema_miss(expect.json_schema, answer)):
        found.append(why)
    if expect.max_latency_seconds is not None and seconds > float(expect.max_latency_seconds):
        found.append(f"took {seconds:.2f} s, longer than {expect.max_latency_seconds} s")
    return found


def shown(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} [...]"


def _schema_miss(schema_text: str, answer: str) -> str:
    try:
        value = json.loads(answer, parse_constant=_not_json)
    except (ValueError, RecursionError) as broken:
        return f"is not JSON: {shown(str(broken))}"
    schema = json.loads(schema_text)
    # A registry of its own: the library's default one would fetch a $ref from any address, from inside the cluster.
    registry: Registry[Any] = Registry()
    validator = validator_for(schema, default=Draft202012Validator)(schema, registry=registry)
    try:
        error = best_match(validator.iter_errors(value))
    except (Unresolvable, RecursionError, re.error) as broken:
        return f"cannot be checked: jsonSchema refers to what is not in it, or to itself without end ({type(broken).__name__})"
    return f"is not as jsonSchema says at {error.json_path}: {shown(error.message)}" if error else ""


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value")
