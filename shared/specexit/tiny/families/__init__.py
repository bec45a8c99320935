"""tiny-mixed's problems: the tiny reasoner's three families, and five on which exits are harder to judge.

* ``sums``: every step is needed and the answer is stated in the last one. Nothing can be cut.
* ``lookup``: the answer stands in the question. The first answer that is stated is the last one, too.
* ``late``: the first answer is wrong three times in four, and what repairs it comes behind checks that did not see it.
* ``choice``: multiple choice, answered by a letter.
* ``program``: what a short program prints, a number or ``TRUE`` and ``FALSE``.

Each has a file, with a problem and the thinking that is installed for it; `exercise` is what they have in common,
`mixture` draws from them.
"""

from specexit.tiny.families.exercise import Exercise as Exercise
from specexit.tiny.families.exercise import Thought as Thought
from specexit.tiny.families.mixture import FAMILIES as FAMILIES
from specexit.tiny.families.mixture import exercises as exercises
from specexit.tiny.families.mixture import stream as stream
