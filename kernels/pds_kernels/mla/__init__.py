"""Multi-head latent attention: pages hold one latent a token, from which all heads' keys and values
come.

    plan.py        what a kernel is given, beside the step's AttentionPlan
    dispatch.py    the seam: the kernels there are, and which of them a process runs
    reference.py   the definition, in plain torch

    prepare = choose(geometry).make(geometry)
    attend = prepare(plan)                            # once a step
    out = attend(q, latent, pages, w_uk, w_uv)        # once a layer
"""

from pds_kernels.mla.dispatch import Kernel, choose
from pds_kernels.mla.plan import Attend, Geometry, Prepare

__all__ = ["Attend", "Geometry", "Kernel", "Prepare", "choose"]
