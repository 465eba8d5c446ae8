"""Evaluation of runs: metrics against reference rows and thresholds, reports, figures, the demo.

Figures and pictures (``evaluation.figures``, ``.pictures``, ``.demo``) need matplotlib and are imported on their own.
"""

from onestep_adapters.evaluation.criteria import Criteria as Criteria
from onestep_adapters.evaluation.criteria import criteria_of as criteria_of
from onestep_adapters.evaluation.image_criteria import image_verdicts as image_verdicts
from onestep_adapters.evaluation.judges import ImageJudge as ImageJudge
from onestep_adapters.evaluation.judges import Judge as Judge
from onestep_adapters.evaluation.judges import PointJudge as PointJudge
from onestep_adapters.evaluation.judges import image_classifier as image_classifier
from onestep_adapters.evaluation.judges import image_splits as image_splits
from onestep_adapters.evaluation.judges import judge_of as judge_of
from onestep_adapters.evaluation.markdown import to_markdown as to_markdown
from onestep_adapters.evaluation.measuring import cost_of as cost_of
from onestep_adapters.evaluation.measuring import evaluate_runs as evaluate_runs
from onestep_adapters.evaluation.measuring import label_of as label_of
from onestep_adapters.evaluation.measuring import labelled as labelled
from onestep_adapters.evaluation.point_criteria import point_verdicts as point_verdicts
from onestep_adapters.evaluation.report import Report as Report
from onestep_adapters.evaluation.report import environment as environment
from onestep_adapters.evaluation.report import make_report as make_report
from onestep_adapters.evaluation.report import with_rows as with_rows
from onestep_adapters.evaluation.rows import Comparison as Comparison
from onestep_adapters.evaluation.rows import Cost as Cost
from onestep_adapters.evaluation.rows import References as References
from onestep_adapters.evaluation.rows import Row as Row
from onestep_adapters.evaluation.rows import Verdict as Verdict
from onestep_adapters.evaluation.samples import write_samples as write_samples
from onestep_adapters.evaluation.summary import summary as summary
from onestep_adapters.evaluation.watching import histories as histories
from onestep_adapters.evaluation.watching import validation_distance as validation_distance
from onestep_adapters.evaluation.watching import watched as watched
from onestep_adapters.evaluation.writing import from_json as from_json
from onestep_adapters.evaluation.writing import to_json as to_json
from onestep_adapters.evaluation.writing import write_report as write_report
