"""Mistakes in mappings and in the schema registry's address, found when settings are loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from schemas.errors import SettingsError
from schemas.settings.mapping import Mapping, SchemaRegistry
from schemas.settings.root import Settings


def check_mappings(settings: Settings, path: Path) -> None:
    """Raises SettingsError for an expression that is no JMESPath, and for a mapping that nobody would use."""
    _check_registry(settings.schema_registry, f"{path}: schema_registry")
    known = settings.source_topics()
    for topic, mapping in settings.map.items():
        if known and topic not in known:
            raise SettingsError(
                f'{path}: [map."{topic}"]: no task reads the topic {topic}; they read {", ".join(known)}. Correct the '
                "name, or add the topic to a task's topics."
            )
        check_mapping(mapping, f'{path}: map."{topic}"')
    for name, task in settings.tasks.items():
        check_mapping(task.map, f"{path}: tasks.{name}.map")


def check_mapping(mapping: Mapping, where: str) -> None:
    """Raises SettingsError for the first expression that cannot be read."""
    expressions = mapping.expressions()
    if not expressions:
        return
    import jmespath  # here: a machine that only trains may not have it
    from jmespath.exceptions import JMESPathError
    from jmespath.functions import Functions

    for field, text in expressions.items():
        try:
            tree = jmespath.compile(text).parsed
        except JMESPathError as error:
            raise SettingsError(
                f"{where}.{field}: {text!r} is no JMESPath expression: {_said(error)}. A name with dashes or dots "
                "wants double quotes: '\"my-field\".text'. Try it with `goldstream map test FILE`."
            ) from None
        unknown = sorted(_functions(tree) - set(Functions.FUNCTION_TABLE))
        if unknown:
            raise SettingsError(f"{where}.{field}: {text!r} calls {unknown[0]}, which is no function of JMESPath.")
    if mapping.messages and mapping.prompt:
        raise SettingsError(f"{where} sets both messages and prompt; keep the one that holds the user's text.")
    if mapping.system and not (mapping.messages or mapping.prompt):
        raise SettingsError(f"{where}.system needs messages or prompt beside it.")


def _said(error: Exception) -> str:
    """Returns what a parser objects to, without its repetition of the expression."""
    return str(error).splitlines()[0].partition(", for expression")[0].rpartition(": Parse error")[2].strip(" :")


def _functions(tree: dict[str, Any]) -> set[str]:
    """Returns the names of the functions that an expression calls."""
    found = {tree["value"]} if tree.get("type") == "function_expression" else set()
    return found.union(*(_functions(child) for child in tree.get("children", ()) if isinstance(child, dict)))


def _check_registry(registry: SchemaRegistry, where: str) -> None:
    if registry.url and ("@" in registry.url or "?" in registry.url or not re.match(r"https?://[^/]", registry.url)):
        raise SettingsError(
            f"{where}.url: expected a plain address such as http://registry:8081, without user name, password or "
            "query; name the variables that hold them in username_env and password_env."
        )
    if bool(registry.username_env) != bool(registry.password_env):
        raise SettingsError(f"{where}: username_env and password_env go together; one is missing.")
    if registry.token_env and registry.username_env:
        raise SettingsError(f"{where}: set token_env, or username_env and password_env, not both.")
