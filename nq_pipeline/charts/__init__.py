"""Charts of the lake's tables: a polars frame in, an Altair chart out, no I/O.

A function whose frame has nothing to draw returns a sentence that says why, instead of an empty chart.
Charts have the light theme. `render.svg` turns them into images, in any palette, and so does Altair's `save`.

    from nq_pipeline import charts
    charts.smile(nq.connect().sql("select * from iv_smile").pl())
"""

from nq_pipeline.charts.explorer import AXES as AXES
from nq_pipeline.charts.explorer import smile_explorer as smile_explorer
from nq_pipeline.charts.history import gamma_history as gamma_history
from nq_pipeline.charts.history import level_history as level_history
from nq_pipeline.charts.history import volatility_history as volatility_history
from nq_pipeline.charts.positions import REACHES as REACHES
from nq_pipeline.charts.positions import first_reach as first_reach
from nq_pipeline.charts.positions import gamma_exposure as gamma_exposure
from nq_pipeline.charts.positions import open_interest as open_interest
from nq_pipeline.charts.positions import open_interest_change as open_interest_change
from nq_pipeline.charts.positions import put_call as put_call
from nq_pipeline.charts.positions import volume as volume
from nq_pipeline.charts.spend_and_sources import source_agreement as source_agreement
from nq_pipeline.charts.spend_and_sources import spend as spend
from nq_pipeline.charts.surface import surface as surface
from nq_pipeline.charts.theme import Picture as Picture
from nq_pipeline.charts.theme import series_label as series_label
from nq_pipeline.charts.theme import series_label_text as series_label_text
from nq_pipeline.charts.trade_pressure import pressure as pressure
from nq_pipeline.charts.volatility import expected_move as expected_move
from nq_pipeline.charts.volatility import smile as smile
from nq_pipeline.charts.volatility import term_structure as term_structure
