"""Which training data to learn from: selection, diversity and attribution from gradients of examples.

Pure functions on arrays, most of them on a Gram matrix as ``salt_jax.geometry`` makes it. docs/selection.md says
which is for what; ``experiments.select_data`` selects from a file.
"""

from salt_jax.selection.attribution import in_run_shapley, shapley_of_step, trak_scores
from salt_jax.selection.domains import DomainWeights, domain_step
from salt_jax.selection.ghost import (
    GhostCosts,
    bias_gram,
    ghost_costs,
    linear_gram,
    linear_norms,
    norm_scale_gram,
    weighted_gram,
)
from salt_jax.selection.ghost_embedding import embedding_gram, tied_gram
from salt_jax.selection.greats import GreatsSelection, greats
from salt_jax.selection.less import (
    Influence,
    adam_features,
    influence,
    influence_of_products,
    less_features,
    rademacher_project,
)
from salt_jax.selection.logra import logra_matrices, logra_project
from salt_jax.selection.sparsity import (
    Overlap,
    UpdateSparsity,
    changed,
    update_overlap,
    update_rank_ratio,
    update_sparsity,
)
from salt_jax.selection.spice import (
    SpiceSelection,
    greedy_bound,
    interaction_terms,
    spice,
    spice_curvature,
    spice_diagonal,
)
from salt_jax.selection.vendi import (
    DiverseSelection,
    GradientDiversity,
    gvendi_score,
    normalize_kernel,
    vendi_greedy,
    vendi_score,
)

__all__ = [
    "DiverseSelection",
    "DomainWeights",
    "GhostCosts",
    "GradientDiversity",
    "GreatsSelection",
    "Influence",
    "Overlap",
    "SpiceSelection",
    "UpdateSparsity",
    "adam_features",
    "bias_gram",
    "changed",
    "domain_step",
    "embedding_gram",
    "ghost_costs",
    "greats",
    "greedy_bound",
    "gvendi_score",
    "in_run_shapley",
    "influence",
    "influence_of_products",
    "interaction_terms",
    "less_features",
    "linear_gram",
    "linear_norms",
    "logra_matrices",
    "logra_project",
    "norm_scale_gram",
    "normalize_kernel",
    "rademacher_project",
    "shapley_of_step",
    "spice",
    "spice_curvature",
    "spice_diagonal",
    "tied_gram",
    "trak_scores",
    "update_overlap",
    "update_rank_ratio",
    "update_sparsity",
    "vendi_greedy",
    "vendi_score",
    "weighted_gram",
]
