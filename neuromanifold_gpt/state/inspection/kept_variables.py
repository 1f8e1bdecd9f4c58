"""What objects and functions keep, and where it can be set again.

It is in attributes, in ``__dict__`` or ``__slots__``, in variables of the functions around a function, and in numbers
that processes share.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from neuromanifold_gpt.state.inspection.instructions import instructions_of
from neuromanifold_gpt.state.inspection.plain_reading import (
    attribute_dict,
    bases_of,
    module_name_of,
    parts_of,
    remembered_of_class,
    slots_of,
    values_of_slots,
    variables_of_class,
)
from neuromanifold_gpt.state.inspection.shared_values import is_shared_number, number_in, set_number
from neuromanifold_gpt.state.inspection.stored_values import is_single_value
from neuromanifold_gpt.state.inspection.users_objects import is_users_module


def keeps_variables(thing: Any) -> bool:
    """Whether it has attributes that can be set."""
    return is_shared_number(thing) or bool(_slots(type(thing))) or attribute_dict(thing) is not None


def kept_variables(thing: Any) -> dict[str, Any]:
    """Attributes by name; of a function, also variables around it that it sets itself.

    Others around it may belong to a program that is running and sets them itself, such as the number of its step.
    """
    if is_shared_number(thing):
        return {"value": number_in(thing)}
    found = dict(attribute_dict(thing) or {})
    if _is_users_function(thing):
        return {**{name: cell.cell_contents for name, cell in _cells_set_by(thing)}, **found}
    return {**found, **values_of_slots(thing, _slots(type(thing)))}


def variables_at(thing: Any) -> dict[str, Any]:
    """:func:`kept_variables`; of a function, also lists, objects and the like in its defaults and all around it."""
    kept = kept_variables(thing)
    around = parts_of(thing) if _is_users_function(thing) else ()
    return {**{name: value for name, value in around if not is_single_value(value)}, **kept}


def set_variable(thing: Any, name: str, value: Any) -> None:
    """Set one of :func:`kept_variables`."""
    if is_shared_number(thing):
        set_number(thing, value)
    elif _is_users_function(thing) and (cell := dict(_cells_set_by(thing)).get(name)) is not None:
        cell.cell_contents = value
    elif (member := dict(_slots(type(thing))).get(name)) is not None:
        member.__set__(thing, value)
    elif (attributes := attribute_dict(thing)) is not None:
        attributes[name] = value


def take_back(thing: Any, name: str) -> None:
    """Let an attribute of an object be that of its class again, if that has one."""
    attributes = attribute_dict(thing)
    if attributes is not None and name in attributes and any(name in vars(kind) for kind in type(thing).__mro__):
        del attributes[name]


def _is_users_function(thing: Any) -> bool:
    return type(thing) is types.FunctionType and is_users_module(thing.__module__)


@remembered_of_class
def _slots(kind: type) -> tuple[tuple[str, types.MemberDescriptorType], ...]:
    """Of users' classes: in those of others, hashes are remembered, which differ from process to process."""
    return slots_of(kind) if is_users_module(module_name_of(kind)) else ()


def _cells_set_by(function: types.FunctionType) -> Iterator[tuple[str, types.CellType]]:
    if function.__closure__:
        names = names_set_by(function.__code__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True):
            if name in names and cell != types.CellType():  # filled
                yield name, cell


@functools.lru_cache(maxsize=1000)
def names_set_by(code: types.CodeType) -> frozenset[str]:
    """Variables of the functions around that a function, or one within it, sets."""
    within = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    own = {step.argval for step in instructions_of(code) if step.opname == "STORE_DEREF"}
    return frozenset(own.union(*map(names_set_by, within))) & {*code.co_freevars}


@functools.cache
def attributes_made_by(method: types.CodeType) -> frozenset[str]:
    """Attributes that a method sets, and does not read before, as far as the order of its instructions tells."""
    first: dict[str, str] = {}
    for opname, name in _uses_of_attributes(method):
        first.setdefault(name, opname)
    return frozenset(name for name, opname in first.items() if opname == "STORE_ATTR")


@remembered_of_class
def attributes_carried(kind: type) -> frozenset[str]:
    """Attributes that some method of users' classes reads, and sets behind that: the hidden state of the last batch."""
    found: set[str] = set()
    for code in (code for _, value in variables_of_users_classes(kind) for code in codes_of(value)):
        read: set[str] = set()
        for opname, name in _uses_of_attributes(code):
            if opname != "STORE_ATTR":
                read.add(name)
            elif name in read:
                found.add(name)
    return frozenset(found)


def variables_of_users_classes(kind: type) -> Iterator[tuple[str, Any]]:
    """Methods and the like of a class and those above it, by name, but for those of libraries."""
    for base in bases_of(kind):
        if is_users_module(module_name_of(base)):
            yield from variables_of_class(base).items()


def _uses_of_attributes(method: types.CodeType) -> list[tuple[str, str]]:
    steps = instructions_of(method)
    return [(step.opname, step.argval) for step in steps if step.opname.endswith("_ATTR")]


def attributes_set_by(value: Any) -> Iterator[str]:
    """Names of attributes, to which a function, a method or the setter of a property assigns."""
    for code in codes_of(value.fset if isinstance(value, property) else value):
        yield from (step.argval for step in instructions_of(code) if step.opname == "STORE_ATTR")


@remembered_of_class
def attributes_of_init_only(kind: type) -> frozenset[str]:
    """Attributes that users' classes set when they are made, and in no other method."""
    by_init: set[str] = set()
    by_others: set[str] = set()
    for name, value in variables_of_users_classes(kind):
        (by_init if name == "__init__" else by_others).update(attributes_set_by(value))
    return frozenset(by_init - by_others)


def codes_of(value: Any) -> Iterator[types.CodeType]:
    """Of a function, and of those within it."""
    if isinstance(value, types.CodeType):
        yield value
        for constant in value.co_consts:
            yield from codes_of(constant)
    elif isinstance(value, types.FunctionType):
        yield from codes_of(value.__code__)
        yield from codes_of(vars(value).get("__wrapped__"))  # within a decorator
