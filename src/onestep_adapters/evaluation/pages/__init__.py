"""Reports as one HTML file that needs nothing else. The file ``html`` needs jinja2, an extra, and is imported alone."""

from onestep_adapters.evaluation.pages.page import Column as Column
from onestep_adapters.evaluation.pages.page import Page as Page
from onestep_adapters.evaluation.pages.page import Picture as Picture
from onestep_adapters.evaluation.pages.page import Section as Section
from onestep_adapters.evaluation.pages.page import Table as Table
from onestep_adapters.evaluation.pages.page import Value as Value
from onestep_adapters.evaluation.pages.page import to_text as to_text
