from .figures import plot_loss_curves as plot_loss_curves
from .figures import plot_overview as plot_overview
from .report_page import write_report as write_report
from .sweep_report import report_sweep as report_sweep
