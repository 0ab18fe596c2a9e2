"""A first look at the lake: `make notebook` opens it, and as a script it runs from top to bottom."""

import marimo

app = marimo.App(width="medium", app_title="First look")


@app.cell
def _():
    from datetime import timedelta

    import marimo as mo
    import polars as pl

    import nq_pipeline as nq
    from nq_pipeline import charts
    from nq_pipeline.market.contracts import roots_of
    from nq_pipeline.market.products import PRODUCTS, PROXIES

    def shown(picture):
        """A chart, or the sentence that says why there is none."""
        return mo.md(picture) if isinstance(picture, str) else picture

    products = PRODUCTS | PROXIES
    return charts, mo, nq, pl, products, roots_of, shown, timedelta


@app.cell
def _(mo, nq):
    chain = nq.chain()
    lake = nq.connect()
    synthetic = chain["environment"].unique().to_list() == ["sandbox"]
    mo.md(
        f"""
        # First look

        {"**SANDBOX: a synthetic market, no price here is real.**" if synthetic else ""}

        The newest chain has {chain.height:,} contracts in {chain["series"].n_unique()} series, asked for at
        {chain["snapshot_ts"].max():%Y-%m-%d %H:%M:%S} UTC. `nq.chain()` is a polars frame, `nq.connect()` is
        DuckDB with every table and view.
        """
    )
    return chain, lake


@app.cell
def _(chain):
    columns = ["contract_key", "source", "bid", "ask", "last", "settlement", "settlement_date"]
    columns += ["volume", "open_interest"]
    chain.sort("open_interest", descending=True, nulls_last=True).select(columns).head(200)
    return


@app.cell
def _(mo):
    mo.md(
        """
        ## Volatility

        Our own, from the quotes: `iv_smile` has a row per strike, `series_metrics` one per series.
        """
    )
    return


@app.cell
def _(lake):
    def newest(table):
        """The rows of a table's newest snapshot."""
        return lake.sql(f"from {table} where snapshot_ts = (select max(snapshot_ts) from {table})").pl()

    measured = {
        table: newest(table) for table in ("iv_smile", "series_metrics", "strike_profile", "gamma_levels")
    }
    return (measured,)


@app.cell
def _(measured, mo, products):
    known = set(measured["gamma_levels"]["product"])
    offered = [code for code in products if code in known]
    product = mo.ui.dropdown(offered, value=next(iter(offered), None), label="product")
    product
    return (product,)


@app.cell
def _(measured, pl, product, products, roots_of):
    of_product = pl.col("root").is_in(list(roots_of([products[product.value]] if product.value else [])))
    smile, metrics, profile = (
        measured[table].filter(of_product) for table in ("iv_smile", "series_metrics", "strike_profile")
    )
    levels = measured["gamma_levels"].filter(pl.col("product").eq_missing(product.value))
    return levels, metrics, of_product, profile, smile


@app.cell
def _(charts, shown, smile):
    shown(charts.smile(smile))
    return


@app.cell
def _(charts, metrics, shown):
    shown(charts.term_structure(metrics))
    return


@app.cell
def _(charts, metrics, shown):
    shown(charts.expected_move(metrics))
    return


@app.cell
def _(mo):
    mo.md(
        """
        ## Positions

        Open interest is of the day before. Gamma exposure assumes that dealers are long calls and short puts.
        """
    )
    return


@app.cell
def _(metrics, mo):
    series = mo.ui.dropdown(
        metrics.sort("expiration")["series"].to_list(),
        value=metrics.sort("expiration")["series"].first(),
        label="series",
    )
    series
    return (series,)


@app.cell
def _(charts, metrics, profile, series, shown):
    shown(charts.open_interest(profile, metrics, series.value))
    return


@app.cell
def _(charts, levels, profile, shown):
    shown(charts.gamma_exposure(profile, levels))
    return


@app.cell
def _(charts, metrics, shown):
    shown(charts.put_call(metrics))
    return


@app.cell
def _(mo):
    mo.md(
        """
        ## Then and now

        `nq.chain(as_of=…)` is the chain as it stood at a moment; nothing that came later is in it. What
        traded since an hour ago:
        """
    )
    return


@app.cell
def _(chain, nq, pl, timedelta):
    before = nq.chain(as_of=chain["snapshot_ts"].max() - timedelta(hours=1)).select("contract_key", "volume")
    since = pl.col("volume") - pl.col("volume_before").fill_null(0)
    traded = (
        chain.join(before, on="contract_key", how="left", suffix="_before")
        .select("contract_key", "bid", "ask", traded=since)
        .sort("traded", descending=True, nulls_last=True)
    )
    traded.head(20)
    return


@app.cell
def _(mo):
    mo.md(
        """
        ## Trades

        What `nq capture` streamed: bars of the future, and who was the aggressor in the options.
        """
    )
    return


@app.cell
def _(lake, shown):
    bars = lake.sql(
        """
        select bar_start, raw_symbol, open, high, low, close, volume
        from bars(interval 5 minutes)
        where instrument_kind = 'future'
        order by bar_start desc, volume desc
        limit 200
        """
    ).pl()
    bars if bars.height else shown("No trades were captured yet; `nq capture --minutes 1` streams some.")
    return


@app.cell
def _(charts, lake, levels, of_product, shown):
    newest_trades = "from pressure where trade_date = (select max(trade_date) from trades)"
    pressure = lake.sql(newest_trades).pl().filter(of_product)
    shown(charts.pressure(pressure, "C", forward=levels["forward"].first()))
    return


if __name__ == "__main__":
    app.run()
