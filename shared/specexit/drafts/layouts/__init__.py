"""Published EAGLE-3 drafts: one file for every layout that is read, behind one interface.

`Layout` says how a layout names its tensors and states its geometry; `LAYOUTS` lists them, the most specific first.
`specexit.drafts.published` asks each whether it recognises a folder, and reads it with the one that does.
"""

from specexit.drafts.layouts.angelslim import ANGELSLIM
from specexit.drafts.layouts.deepspec import DEEPSPEC
from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Layout
from specexit.drafts.layouts.nemo import NEMO
from specexit.drafts.layouts.safeailab import SAFEAILAB
from specexit.drafts.layouts.specforge import SPECFORGE
from specexit.drafts.layouts.speculators import SPECULATORS
from specexit.drafts.layouts.torchspec import TORCHSPEC

LAYOUTS = {layout.name: layout for layout in (SPECULATORS, DEEPSPEC, NEMO, TORCHSPEC, SPECFORGE, ANGELSLIM, SAFEAILAB)}

__all__ = ["LAYOUTS", "Keys", "Layout"]
