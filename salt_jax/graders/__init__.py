"""Graders: a completion and a reference become a reward, or a *missing* reward, never a silent 0.

``verdict`` has the types and grading in this process, for verifiers that cannot hang; ``pool`` runs a ``Grader``
in killable workers. A worker imports only this room, so nothing here may import JAX or the other rooms.

What a ``Grader`` can name:

==========================================  ========================================  ===================
path                                        reference                                 needs
==========================================  ========================================  ===================
salt_jax.graders.verdict:exact_match        the text itself
salt_jax.graders.choice:exact_answer        the text itself, and votes on it
salt_jax.graders.choice:multiple_choice     a letter
salt_jax.graders.mathematics:math_equal     a plain answer, LaTeX or not              extra `math`
salt_jax.graders.reasoning:score_answer     a reasoning-gym entry, as JSON            extra `gym`
salt_jax.graders.code:run_tests             tests of a program, as JSON               Linux, see ``confine``
==========================================  ========================================  ===================

A module of graders may have a function ``check_reference``, which says whether a reference can be used when its file is
read: see ``Grader.reference_check``.
"""

from salt_jax.graders.pool import GraderPool
from salt_jax.graders.verdict import (
    ErrorReport,
    Grader,
    GraderError,
    Grades,
    Verdict,
    Verifier,
    exact_match,
    grade_all,
)

__all__ = [
    "ErrorReport",
    "Grader",
    "GraderError",
    "GraderPool",
    "Grades",
    "Verdict",
    "Verifier",
    "exact_match",
    "grade_all",
]
