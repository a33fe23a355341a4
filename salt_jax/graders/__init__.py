"""Graders: a completion and a reference become a reward, or a *missing* reward, never a silent 0.

``verdict`` has the types and grading in this process, for verifiers that cannot hang; ``pool`` runs a ``Grader``
in killable workers. A worker imports only this room, so nothing here may import JAX or the other rooms.
"""

from salt_jax.graders.verdict import ErrorReport, Grader, Grades, Verdict, Verifier, exact_match, grade_all

__all__ = ["ErrorReport", "Grader", "Grades", "Verdict", "Verifier", "exact_match", "grade_all"]
