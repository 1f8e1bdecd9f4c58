"""The pytest fixture ``certify_resume``, which an installed package offers to every project's tests.

::

    def test_training_resumes(certify_resume):
        certify_resume("python train.py --out_dir={out} --max_iters=60", at_random=2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from neuromanifold_gpt.certify.certificate import Certificate


@pytest.fixture
def certify_resume(tmp_path: Path) -> Callable[..., Certificate]:
    """A function that certifies a command and fails the test unless it resumes exactly.

    It takes what :func:`neuromanifold_gpt.certify.certify` takes, ``work`` excepted, which is in pytest's temporary
    directory, and returns the certificate.
    """

    def certify_or_fail(command: Sequence[str] | str, **options: Any) -> Certificate:
        # Imported when it is used: it brings torch with it, which the other tests of a project may not need.
        from neuromanifold_gpt.certify.front import certify
        from neuromanifold_gpt.certify.report_terminal import account

        certificate = certify(command, work=tmp_path / "certify", **options)
        if not certificate.exact:
            pytest.fail(f"{account(certificate)}\nReport: {tmp_path / 'certify' / 'report.json'}", pytrace=False)
        return certificate

    return certify_or_fail
