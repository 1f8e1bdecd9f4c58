"""Prove that a training program resumes: run it, interrupt it without mercy, compare, judge.

:func:`certify` takes any command of any framework; ``neuromanifold certify`` is its command line.
"""

from neuromanifold_gpt.certify.certificate import Certificate
from neuromanifold_gpt.certify.front import certify
from neuromanifold_gpt.certify.verdict import Verdict

__all__ = ["Certificate", "Verdict", "certify"]
