"""Names: what is not there is not silently Any."""
# pyright: reportUnknownArgumentType=false

import supervisor
from supervisor import Fenced  # E: attr-defined reportAttributeAccessIssue
from supervisor import stepp  # E: attr-defined reportAttributeAccessIssue
from supervisor.sync import gatherr  # E: attr-defined reportAttributeAccessIssue

reveal_type(supervisor.__version__)  # R: str
print(supervisor.sleeep(3))  # E: attr-defined reportAttributeAccessIssue
print(Fenced, stepp, gatherr)
