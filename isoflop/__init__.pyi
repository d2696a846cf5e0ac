from .errors import IsoflopError as IsoflopError
from .fitting import compare as compare
from .fitting import fit_envelope as fit_envelope
from .fitting import fit_isoflop as fit_isoflop
from .fitting import fit_joint as fit_joint
from .fitting import fit_parametric as fit_parametric
from .fitting import load_fit as load_fit
from .fitting import predict as predict
from .planning.plan import Plan as Plan
from .planning.plan import plan as plan
from .planning.run_spec import RunSpec as RunSpec
from .runs.runs_table import read_runs as read_runs
from .shapes import ModelShape as ModelShape
from .training.weights import load_weights as load_weights

__all__: list[str]
__version__: str
