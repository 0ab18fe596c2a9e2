"""Tables computed from chains and trades."""

from __future__ import annotations

from nq_pipeline.lake.tables.table import (
    CONTRACT_KEY,
    DATE,
    ENVIRONMENT,
    FLOAT,
    INSTANT,
    INT,
    OPTION_TYPE,
    PRODUCT,
    ROOT,
    RUN_ID,
    SERIES,
    STRIKE,
    TEXT,
    UNDERLYING_CLASS,
    Table,
    nullable,
    required,
)

_IV_UNCERTAINTY = nullable(
    "iv_uncertainty", FLOAT, "half the quote's width (at least half a tick) in volatility; null without quote"
)

OPTION_PRICING = Table(
    name="option_pricing",
    version=2,
    meaning="Implied volatility and Greeks computed from option_chain: one row for each of its rows.",
    columns=(
        required("source", TEXT, "vendor whose quote was priced"),
        ENVIRONMENT,
        required("snapshot_ts", INSTANT, "snapshot_ts of the chain's row"),
        required("trade_date", DATE, "CME session date of the snapshot"),
        SERIES,
        CONTRACT_KEY,
        required(
            "valued_at",
            INSTANT,
            "as_of, or on a closed market its close; of a settlement, when it was determined",
        ),
        nullable("price", FLOAT, "the price that was valued, points or dollars"),
        nullable("price_used", TEXT, "mid (of bid and ask), settlement or last"),
        nullable(
            "price_age_s",
            FLOAT,
            "seconds to as_of from the last trade, the settlement or, for a quote, valued_at",
        ),
        nullable("forward", FLOAT, "the future's price used to value the row"),
        nullable("forward_source", TEXT, "parity (of the quotes) or underlying (the vendor's future)"),
        nullable("parity_forward", FLOAT, "the series' forward by put-call parity, used or not"),
        nullable("parity_spread", FLOAT, "interquartile range of the pairs' forwards, points"),
        required("parity_pairs", INT, "put-call pairs it was computed from"),
        nullable("parity_gap", FLOAT, "parity_forward less the vendor's underlying; null for settlements"),
        required(
            "rate",
            FLOAT,
            "interest rate until expiration, per year, continuously compounded",
        ),
        required("years", FLOAT, "from valued_at to expiration, in years of 365 days"),
        nullable("model", TEXT, "black76, or kim (American; ju_zhong in older rows); null when not priced"),
        nullable("implied_volatility", FLOAT, "as a fraction"),
        nullable("delta", FLOAT, "with respect to the future's price, as a fraction"),
        nullable("gamma", FLOAT, "per point"),
        nullable("theta", FLOAT, "per calendar day"),
        nullable("vega", FLOAT, "per 1.00 of volatility"),
        nullable("rho", FLOAT, "per 1.00 of interest rate, with the future's price unchanged"),
        nullable("vanna", FLOAT, "change of delta per 1.00 of volatility"),
        nullable("charm", FLOAT, "change of delta per calendar day that passes"),
        nullable("volga", FLOAT, "change of vega per 1.00 of volatility"),
        _IV_UNCERTAINTY,
        nullable(
            "unpriced",
            TEXT,
            "why there is no implied volatility: expired, crossed, one_sided, stale_last, no_quote, "
            "no_forward, below_intrinsic, above_bound, no_solution; null when there is",
        ),
        RUN_ID,
    ),
    key=("source", "snapshot_ts", "contract_key"),
    order=("contract_key", "snapshot_ts"),
    pruning_column="snapshot_ts",
)

_SNAPSHOT = (
    required("source", TEXT, "vendor of the chain"),
    ENVIRONMENT,
    required("snapshot_ts", INSTANT, "snapshot_ts of the chain's rows"),
    required("trade_date", DATE, "CME session date of the snapshot"),
    UNDERLYING_CLASS,
)

_SERIES = (
    *_SNAPSHOT,
    ROOT,
    SERIES,
)

_STRIKE = (*_SERIES, STRIKE)

_TOTALS = (
    nullable("call_open_interest", INT, "open calls; null when unknown"),
    nullable("put_open_interest", INT, "open puts; null when unknown"),
    nullable("call_volume", INT, "calls traded in the session; null when unknown"),
    nullable("put_volume", INT, "puts traded in the session; null when unknown"),
)

_RATIOS = (
    nullable("put_call_open_interest", FLOAT, "put/call ratio; null without calls"),
    nullable("put_call_volume", FLOAT, "put/call ratio; null without calls"),
)

_GEX = (
    nullable(
        "gex_per_point", FLOAT, "net gamma exposure (dealers long calls, short puts), dollars per point"
    ),
    nullable("gex_per_pct", FLOAT, "the same, dollars per 1 % of the forward"),
)

_RISK_REVERSAL_25 = nullable(
    "risk_reversal_25", FLOAT, "iv_25_call − iv_25_put, as a fraction; below 0 where puts cost more"
)
_BUTTERFLY_25 = nullable("butterfly_25", FLOAT, "mean of iv_25_call and iv_25_put, less atm_iv")

_SKEW = (
    nullable("iv_25_call", FLOAT, "volatility of the call with a forward delta of 0.25, as a fraction"),
    nullable("iv_25_put", FLOAT, "volatility of the put with a forward delta of −0.25"),
    _RISK_REVERSAL_25,
    _BUTTERFLY_25,
    nullable("iv_10_call", FLOAT, "volatility of the call with a forward delta of 0.10"),
    nullable("iv_10_put", FLOAT, "volatility of the put with a forward delta of −0.10"),
    nullable("risk_reversal_10", FLOAT, "iv_10_call − iv_10_put"),
    nullable("butterfly_10", FLOAT, "mean of iv_10_call and iv_10_put, less atm_iv"),
    nullable(
        "skew_slope",
        FLOAT,
        "risk_reversal_25 over the distance of the two strikes: volatility per 1.00 of ln(strike)",
    ),
)

IV_SMILE = Table(
    name="iv_smile",
    version=1,
    meaning="The volatility smile: the out-of-the-money contract of every strike that has a price.",
    columns=(
        *_STRIKE,
        required("option_type", TEXT, "P below the forward, else C"),
        required("forward", FLOAT, "the future's price used to value it"),
        required("years", FLOAT, "to expiration, in years of 365 days"),
        required("log_moneyness", FLOAT, "ln(strike / forward)"),
        nullable("deviations", FLOAT, "log_moneyness in its own standard deviations, σ√t"),
        required("implied_volatility", FLOAT, "ours, as a fraction"),
        _IV_UNCERTAINTY,
        RUN_ID,
    ),
    key=("source", "snapshot_ts", "series", "strike"),
    order=("snapshot_ts", "series", "strike"),
    pruning_column="snapshot_ts",
)

SURFACE_SLICES = Table(
    name="surface_slices",
    version=1,
    meaning="The fitted smile of every series with enough quotes: raw SVI, w(k) = a + b (ρ (k − m) + "
    "√((k − m)² + σ²)) for the total variance w = iv² × years at k = ln(strike / forward), with a second "
    "hyperbola of the same ρ where one leaves quotes outside bid and ask; and how well it fits.",
    columns=(
        *_SERIES,
        required("expiration", INSTANT, "the instant trading ends"),
        required("years", FLOAT, "to expiration, in years of 365 days"),
        required("forward", FLOAT, "the future's price used to value it"),
        required("a", FLOAT, "SVI's level"),
        required("rho", FLOAT, "SVI's slope ρ, from −1 to 1"),
        required("b", FLOAT, "SVI's scale, above 0"),
        required("m", FLOAT, "log-moneyness of the hyperbola's centre"),
        required("sigma", FLOAT, "width of the hyperbola's bend, in log-moneyness"),
        nullable("b_2", FLOAT, "scale of the second hyperbola; null for raw SVI"),
        nullable("m_2", FLOAT, "its centre; null for raw SVI"),
        nullable("sigma_2", FLOAT, "its bend; null for raw SVI"),
        required("quotes", INT, "out-of-the-money quotes that were fitted"),
        required("strike_min", FLOAT, "lowest strike quoted; the curve has no meaning below"),
        required("strike_max", FLOAT, "highest strike quoted; the curve has no meaning above"),
        nullable("atm_iv", FLOAT, "the curve's volatility at the forward; null outside the strikes"),
        required("inside_share", FLOAT, "share of the quotes between whose bid and ask the curve passes"),
        required("rms_error", FLOAT, "root mean square of curve less mid, in volatility"),
        required("max_error", FLOAT, "largest distance of the curve from a mid, in volatility"),
        required("durrleman_min", FLOAT, "least value of Durrleman's g; below 0 is butterfly arbitrage"),
        RUN_ID,
    ),
    key=("source", "snapshot_ts", "series"),
    order=("snapshot_ts", "series"),
    pruning_column="snapshot_ts",
)

SURFACE_ARBITRAGE = Table(
    name="surface_arbitrage",
    version=1,
    meaning="Where the fitted surface admits arbitrage: one row per range of strikes. A fit inside bid and "
    "ask can have some; compare its size with `iv_uncertainty`.",
    columns=(
        *_SERIES,
        required("kind", TEXT, "butterfly (a negative density) or calendar (total variance falls with time)"),
        nullable("earlier_series", TEXT, "calendar: the expiration before; null for a butterfly"),
        required("strike_from", FLOAT, "lowest strike of the range"),
        required("strike_to", FLOAT, "highest strike of the range"),
        required("strike", FLOAT, "where it is worst"),
        required("log_moneyness", FLOAT, "ln(strike / forward) there"),
        nullable("durrleman_g", FLOAT, "butterfly: Durrleman's g there, below 0"),
        nullable("volatility_drop", FLOAT, "calendar: volatility that the later expiration lacks there"),
        required("iv_uncertainty", FLOAT, "half the width of the quotes there, in volatility; both series'"),
        RUN_ID,
    ),
    key=("source", "snapshot_ts", "series", "kind", "strike_from"),
    order=("snapshot_ts", "series", "kind", "strike_from"),
    pruning_column="snapshot_ts",
)

STRIKE_PROFILE = Table(
    name="strike_profile",
    version=1,
    meaning="Open interest, volume and gamma exposure by strike: one row per snapshot, series and strike.",
    columns=(
        *_STRIKE,
        *_TOTALS,
        required("payout", FLOAT, "dollars all open options would pay if settled at this strike"),
        nullable("call_gex_per_point", FLOAT, "of the call; null without gamma or open interest"),
        nullable("put_gex_per_point", FLOAT, "of the put, at most 0; null without gamma or open interest"),
        nullable("call_gex_per_pct", FLOAT, "of the call, dollars per 1 %"),
        nullable("put_gex_per_pct", FLOAT, "of the put, dollars per 1 %"),
        *_GEX,
        RUN_ID,
    ),
    key=("source", "snapshot_ts", "series", "strike"),
    order=("snapshot_ts", "series", "strike"),
    pruning_column="snapshot_ts",
)

SERIES_METRICS = Table(
    name="series_metrics",
    version=2,
    meaning="Term structure, skew, expected move, put/call ratios, max pain: one row per snapshot and "
    "series.",
    columns=(
        *_SERIES,
        required("expiration", INSTANT, "the instant trading ends"),
        nullable("years", FLOAT, "to expiration, in years of 365 days"),
        nullable("forward", FLOAT, "median of the forwards the series' rows were valued on"),
        nullable("atm_iv", FLOAT, "ATM implied volatility, linear between the strikes around the forward"),
        nullable("atm_strike", FLOAT, "nearest the forward, with call and put quoted or settled"),
        nullable(
            "expected_move_straddle", FLOAT, "price of the ATM straddle, points: the mean absolute move"
        ),
        nullable("expected_move_iv", FLOAT, "forward × atm_iv × √years, points: one standard deviation"),
        *_TOTALS,
        *_RATIOS,
        nullable(
            "max_pain", FLOAT, "strike of least payout, the lowest of equals; null without open interest"
        ),
        *_GEX,
        *_SKEW,
        RUN_ID,
    ),
    key=("source", "snapshot_ts", "series"),
    order=("snapshot_ts", "series"),
    pruning_column="snapshot_ts",
)

CONSTANT_MATURITY = Table(
    name="constant_maturity",
    version=1,
    meaning="Volatility at fixed numbers of days, between the two expirations around each: one row per "
    "source, snapshot, product and number of days.",
    columns=(
        *_SNAPSHOT,
        PRODUCT,
        required("days", INT, "calendar days to expiration: 7, 14, 30, 60 or 90"),
        nullable(
            "atm_iv", FLOAT, "ATM implied volatility, as a fraction; null unless two expirations bracket it"
        ),
        _RISK_REVERSAL_25,
        _BUTTERFLY_25,
        nullable("forward", FLOAT, "the forward at that time, points"),
        RUN_ID,
    ),
    key=("source", "snapshot_ts", "product", "days"),
    order=("snapshot_ts", "source", "product", "days"),
    pruning_column="snapshot_ts",
)

GAMMA_LEVELS = Table(
    name="gamma_levels",
    version=2,
    meaning="All series of a product together: one row per source, snapshot and product.",
    columns=(
        *_SNAPSHOT,
        PRODUCT,
        nullable("forward", FLOAT, "of the next contract to expire; the scale of zero_gamma"),
        *_TOTALS,
        *_RATIOS,
        *_GEX,
        nullable("zero_gamma", FLOAT, "level where net exposure changes sign; null when none is within 10 %"),
        required("contracts", INT, "contracts in the exposure"),
        required("open_interest_left_out", INT, "open contracts without a price, not in the exposure"),
        nullable("open_interest_left_out_share", FLOAT, "the same over all open contracts; null without any"),
        nullable("gamma_regime", TEXT, "sign of the net gamma exposure: positive or negative; null at 0"),
        nullable("call_wall", FLOAT, "strike with the largest gamma exposure of calls, the lowest of equals"),
        nullable("put_wall", FLOAT, "strike with the largest gamma exposure of puts, the lowest of equals"),
        nullable("delta_exposure", FLOAT, "net delta exposure (dealers long calls, short puts), dollars"),
        nullable("vanna_exposure", FLOAT, "change of delta_exposure per 0.01 of volatility, dollars"),
        nullable("charm_exposure", FLOAT, "change of delta_exposure per calendar day that passes, dollars"),
        nullable("term_slope", FLOAT, "atm_iv at 30 days less atm_iv at 7 days (constant_maturity)"),
        nullable(
            "underlying_price", FLOAT, "the vendor's price of the next contract's future, index or fund"
        ),
        RUN_ID,
    ),
    key=("source", "snapshot_ts", "product"),
    order=("snapshot_ts", "source", "product"),
    pruning_column="snapshot_ts",
)

TRADE_PRESSURE = Table(
    name="trade_pressure",
    version=1,
    meaning="Volume by aggressor in windows of five minutes, as counted at the time: one row per window and "
    "option that traded, and another with more trades if a gap was filled later. `pressure` recounts.",
    columns=(
        ENVIRONMENT,
        required("trade_date", DATE, "CME session date"),
        required("window_start", INSTANT, "start of the five minutes, included"),
        required("root", TEXT, "Globex product code"),
        SERIES,
        CONTRACT_KEY,
        OPTION_TYPE,
        STRIKE,
        required("buy_volume", INT, "contracts bought by the aggressor"),
        required("sell_volume", INT, "contracts sold by the aggressor"),
        required("undefined_volume", INT, "contracts without a known aggressor"),
        required("trades", INT, "number of trades, with or without an aggressor"),
        required("average_size", FLOAT, "contracts per trade"),
        nullable("buy_sell_ratio", FLOAT, "buy_volume / sell_volume; null without sells"),
        nullable("imbalance", FLOAT, "(buy − sell) / (buy + sell), from −1 to 1; null without either"),
        nullable("dominant_side", TEXT, "the larger volume: B (bought) or A (sold); null when equal"),
        RUN_ID,
    ),
    key=("environment", "window_start", "contract_key", "trades"),
    order=("window_start", "contract_key", "trades"),
    pruning_column="window_start",
)
