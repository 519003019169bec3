"""The form in which rows are put to the model: one object from data to export.

`Template` says what a template is. `FormTemplate`s have slots for instruction and input (those of the book, of Alpaca,
of the usual chat markups), `ChatTemplate`s are programs in Jinja: a model's own, or the user's.
"""

from instil.data.templates.chat import ChatTemplate as ChatTemplate
from instil.data.templates.find import OWN as OWN
from instil.data.templates.find import TEMPLATE_FILE as TEMPLATE_FILE
from instil.data.templates.find import find_template as find_template
from instil.data.templates.find import read_template as read_template
from instil.data.templates.find import template_from as template_from
from instil.data.templates.forms import TEMPLATES as TEMPLATES
from instil.data.templates.forms import FormTemplate as FormTemplate
from instil.data.templates.forms import template_named as template_named
from instil.data.templates.kept import carries_its_own as carries_its_own
from instil.data.templates.kept import is_kept as is_kept
from instil.data.templates.kept import kept_template as kept_template
from instil.data.templates.kept import name_of_kept as name_of_kept
from instil.data.templates.template import Piece as Piece
from instil.data.templates.template import Template as Template
