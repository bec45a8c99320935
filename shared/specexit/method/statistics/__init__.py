"""The statistics that the project reports and that its guarantees rest on, as small numpy functions.

`ranking` judges scores, `binomial` bounds error rates, `bootstrap` gives intervals, `hypothesis_tests` backs the words
"better" and "no worse", `sequential` backs claims that are checked again and again, and `drift` compares values with
quantiles and counts with shares. The core needs neither scipy nor scikit-learn for them; the tests compare each with an
independent implementation.
"""

from specexit.method.statistics.binomial import (
    LEVEL,
    binomial_interval,
    binomial_tail,
    binomial_upper_bound,
    hoeffding_bentkus,
    mean_upper_bound,
)
from specexit.method.statistics.bootstrap import cluster_bootstrap, paired_bootstrap, relative_cut
from specexit.method.statistics.drift import (
    chance_distance,
    chance_share_distance,
    quantile_distance,
    share_distance,
)
from specexit.method.statistics.hypothesis_tests import (
    Equivalence,
    cluster_means,
    equivalence,
    holm,
    paired_t_test,
    sign_flip_test,
)
from specexit.method.statistics.ranking import Counted, Ranking, counted, ranking
from specexit.method.statistics.sequential import Capital

__all__ = [
    "LEVEL",
    "Capital",
    "Counted",
    "Equivalence",
    "Ranking",
    "binomial_interval",
    "binomial_tail",
    "binomial_upper_bound",
    "chance_distance",
    "chance_share_distance",
    "cluster_bootstrap",
    "cluster_means",
    "counted",
    "equivalence",
    "hoeffding_bentkus",
    "holm",
    "mean_upper_bound",
    "paired_bootstrap",
    "paired_t_test",
    "quantile_distance",
    "ranking",
    "relative_cut",
    "share_distance",
    "sign_flip_test",
]
