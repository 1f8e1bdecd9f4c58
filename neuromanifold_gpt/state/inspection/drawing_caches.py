"""Functions that remember what they have drawn: ``functools.cache`` around a table of random numbers."""

from __future__ import annotations

import functools
import types
from typing import Any

from neuromanifold_gpt.state.inspection.kept_variables import codes_of
from neuromanifold_gpt.state.inspection.plain_reading import attribute_dict
from neuromanifold_gpt.state.inspection.users_objects import is_users_module

CACHE = functools._lru_cache_wrapper
_DRAWS = frozenset(
    {"rand", "randn", "randint", "randrange", "randperm", "rand_like", "randn_like", "randint_like", "random"}
    | {"random_sample", "normal", "uniform", "bernoulli", "multinomial", "poisson", "choice", "choices", "shuffle"}
    | {"sample", "permutation", "standard_normal", "getrandbits", "gauss", "normalvariate", "betavariate", "dirichlet"}
    | {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "geometric_", "cauchy_", "log_normal_"}
    | {"trunc_normal_", "orthogonal_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_"}
)
# What draws from a generator of its own that it makes or seeds itself gives the same in every process.
_SEEDED = frozenset({"Random", "RandomState", "default_rng", "Generator", "manual_seed", "seed", "PRNGKey"})
_CALLS_FOLLOWED = 3


def times_drawn(cache: Any) -> int | None:
    """How often a cache has called its function; ``None`` if that draws nothing, as far as its names show."""
    function = (attribute_dict(cache) or {}).get("__wrapped__")
    return cache.cache_info().misses if _draws(function, _CALLS_FOLLOWED) else None


def _draws(function: Any, calls: int) -> bool:
    if type(function) is not types.FunctionType or not is_users_module(function.__module__):
        return False
    names = {name for code in codes_of(function) for name in code.co_names}
    if names & _SEEDED:
        return False
    called = (function.__globals__.get(name) for name in names) if calls else ()
    return bool(names & _DRAWS) or any(_draws(other, calls - 1) for other in called)
