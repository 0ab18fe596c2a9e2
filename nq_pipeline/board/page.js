// Shows what the board sends. A message is an object of sections; each has its whole value, and only the
// tape comes in batches. Everything received before the screen is drawn again is drawn once.
const PAUSED = 1000; // rows to scroll through while the tape is paused
const MINUTES = 60_000;
const SIDES = { B: ["buy", "▲ buy"], A: ["sell", "▼ sell"], N: ["", "–"] };

const phone = matchMedia("(max-width: 599px)"); // as in the style sheet

const at = (id) => document.getElementById(id);
const write = (id, text, name) => {
  const element = at(id);
  if (element.textContent !== text) element.textContent = text;
  if (name !== undefined) element.className = name;
};
const number = (digits) => {
  const form = new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return (value) => (value == null ? "–" : form.format(value).replace("-", "−"));
};
const whole = number(0), one = number(1), two = number(2);
const percent = (value, digits = 1) => (value == null ? "–" : `${number(digits)(value * 100)} %`);
const signed = (value) => (value > 0 ? `+${two(value)}` : two(value));
const strike = (value) => (Number.isInteger(value) ? whole(value) : two(value));
const usd = (value) => `$${two(value)}`;
const ago = (ms) => {
  if (ms < 1.5 * MINUTES) return `${Math.max(0, Math.round(ms / 1000))} s`;
  if (ms < 90 * MINUTES) return `${Math.round(ms / MINUTES)} min`;
  if (ms < 2880 * MINUTES) return `${Math.floor(ms / (60 * MINUTES))} h ${Math.round((ms / MINUTES) % 60)} min`;
  return `${Math.round(ms / (1440 * MINUTES))} days`;
};

// ── the market's time: that of the feed, which in the sandbox is not the wall's ──

const state = {};
let clockSkew = 0;
const marketNow = () => Date.now() + clockSkew;
// At night the sandbox replays earlier hours, so a chain can be later than its market.
const old = (ms) => (ms > marketNow() + MINUTES ? "later than the hours replayed here" : `${ago(marketNow() - ms)} old`);
const chicago = (ms) => new Date(ms + (state.clock?.offset ?? 0)).toISOString();
const time = (ms, digits = 8) => chicago(ms).slice(11, 11 + digits);
const moment = (ms) => {
  const days = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
  return `${days[new Date(ms + state.clock.offset).getUTCDay()]} ${time(ms, 5)} CT`;
};

// ── the tape: a ring of trades, of which the table shows the newest that pass the filter ──

const tape = { trades: [], total: 0, next: null, lost: 0, changed: false };

const addBatch = ({ first, time, name, type, strike, price, size, side }) => {
  if (tape.next !== null && first < tape.next) return; // seen before the connection was lost
  if (tape.next !== null && first > tape.next) {
    tape.lost += first - tape.next;
    tape.trades.push({ lost: first - tape.next });
  }
  for (let i = 0; i < side.length; i++) {
    tape.trades.push({
      time: time[i], name: name[i], type: type[i], strike: strike[i],
      price: price[i], size: size[i], side: side[i],
    });
  }
  tape.next = first + side.length;
  tape.total += side.length;
  const kept = state.board.tape;
  if (tape.trades.length > 2 * kept) tape.trades.splice(0, tape.trades.length - kept);
};

const passes = (trade) => {
  const kind = at("kind").value;
  const wanted = kind === "" || (kind === "option") === (trade.type !== null);
  return trade.lost || (wanted && trade.size >= (Number(at("least").value) || 1));
};

const showTape = () => {
  const paused = at("pause").checked;
  const box = at("rows"), body = at("tape").tBodies[0];
  const fits = paused ? PAUSED : Math.ceil(box.clientHeight / 22);
  const shown = [];
  for (let i = tape.trades.length - 1; i >= 0 && shown.length < fits; i--) {
    if (passes(tape.trades[i])) shown.push(tape.trades[i]);
  }
  while (body.rows.length > shown.length) body.deleteRow(-1);
  while (body.rows.length < shown.length) {
    const row = body.insertRow();
    for (let i = 0; i < 5; i++) row.insertCell().append("");
    row.cells[2].className = row.cells[3].className = "n";
  }
  shown.forEach((trade, i) => {
    const cells = body.rows[i].cells;
    const option = trade.type ? ` ${strike(trade.strike)} ${trade.type}` : "";
    const texts = trade.lost
      ? ["", `${whole(trade.lost)} trades not shown`, "", "", ""]
      : [time(trade.time, phone.matches ? 8 : 12), trade.name + option, two(trade.price), whole(trade.size), SIDES[trade.side][1]];
    texts.forEach((text, j) => { cells[j].firstChild.data = text; });
    cells[1].className = trade.lost ? "skipped" : "";
    cells[4].className = trade.lost ? "" : SIDES[trade.side][0];
  });
  box.classList.toggle("paused", paused);
  at("tape").setAttribute("aria-rowcount", tape.next ?? 0);
  const lost = tape.lost ? `; ${whole(tape.lost)} not shown, because this page was behind` : "";
  write("tape-note", tape.total ? `${whole(tape.total)} trades since you opened the page${lost}` : "No trade yet.");
};

// ── sections ──

const product = () => at("product").value;

const facts = (id, rows) => {
  const list = at(id);
  list.replaceChildren(...rows.flatMap(([name, text, mark]) => {
    const [term, value] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    value.textContent = text;
    value.className = mark ?? "";
    return [term, value];
  }));
};

const show = {
  board({ products, sandbox, note }) {
    at("sandbox").hidden = !sandbox;
    write("sandbox", [sandbox, note].filter(Boolean).join(" · "));
    const select = at("product");
    if (select.options.length !== products.length) {
      select.replaceChildren(...products.map((name) => new Option(name)));
      select.hidden = products.length < 2;
    }
    document.title = `${products.join(", ")} board${sandbox ? " (sandbox)" : ""}`;
  },

  clock({ state: is, change, changes_at, next_open, trade_date }) {
    const names = { regular: "Open, regular hours", extended: "Open, outside regular hours", closed: "Closed" };
    const strong = document.createElement("strong");
    strong.textContent = `${names[is]} · ${time(marketNow())} CT`;
    const parts = [`trade date ${trade_date}`, `${change} in ${ago(changes_at - marketNow())} (${moment(changes_at)})`];
    if (is !== "closed") parts.push(`next open ${moment(next_open)}`);
    at("clock").replaceChildren(strong, ` · ${parts.join(" · ")}`);
  },

  future(all) {
    const own = all.find((one) => one.product === product());
    write("future-name", own ? `Future ${own.symbol}` : "Future");
    write("future", own ? two(own.last) : "–");
    write("future-note", own
      ? `${signed(own.change)} since ${time(own.began, 5)} CT; ${two(own.low)} to ${two(own.high)}; ${whole(own.volume)} traded`
      : "no trade in a future yet");
  },

  volatility(all) {
    const own = all[product()];
    write("iv", percent(own?.atm_iv));
    write("move", own ? `±${whole(own.expected_move)}` : "–");
    if (!own) {
      write("iv-note", "no live quotes and no chain");
      write("move-note", "");
      return;
    }
    const of = own.quotes ? `of ${whole(own.quotes)} live quotes, the newest` : `of ${own.source}'s chain,`;
    write("iv-note", `${own.label}, ${of} ${old(own.newest)}`);
    write("move-note", `${percent(own.expected_move / own.forward, 2)} in the ${ago(own.expiration - marketNow())} to expiration`);
  },

  capture({ running, ended, trades, rate, quotes, lag, newest, schemas, failure, skipped }) {
    const perSecond = (value) => `${value < 10 ? one(value) : whole(value)}/s`;
    write("rate", perSecond(rate));
    write("rate-note", `${perSecond(quotes)} quotes; ${whole(trades)} trades seen by this board`);
    write("lag", lag ? `${whole(lag.p50)} ms` : "–");
    write("lag-note", lag
      ? `median of a minute, from Databento's receipt to this board; p99 ${whole(lag.p99)} ms`
      : "no live trades in the last minute");
    const rows = [["state", running ? "running" : "No capture is running.", running ? "" : "bad"]];
    if (ended) rows.push(["the board's own ended", ended, "bad"]);
    rows.push(
      ...Object.entries(schemas).map(([kind, schema]) => [`schema of ${kind}s`, schema]),
      ["newest trade", newest ? `${time(newest)} CT, ${ago(marketNow() - newest)} ago` : "–"],
    );
    if (failure) rows.push(["cannot read", failure, "bad"]);
    if (skipped) rows.push(["missing on this page", skipped, "bad"]);
    facts("capture", rows);
  },

  gaps({ open, states, newest }) {
    write("open-gaps", whole(open), open ? "value bad" : "value");
    const counts = Object.entries(states).map(([name, count]) => `${count} ${name}`).join(", ");
    write("open-gaps-note", counts || "none on this trade date");
    facts("gaps", newest.length
      ? newest.map((gap) => [
        `${time(gap.from)} to ${gap.to ? time(gap.to) : "now"}`,
        `${gap.schema}, ${gap.state}: ${gap.cause}${gap.reason ? ` (${gap.reason})` : ""}`,
        gap.state === "open" ? "bad" : "",
      ])
      : [["", "No gap is known."]]);
  },

  chain(all) {
    const own = all[product()];
    facts("chain", own
      ? [
        ["winner", own.winners.map(({ source, series }) => `${source} (${series} series)`).join(", ")],
        ["taken", `${moment(own.snapshot)}, ${old(own.snapshot)}`],
        ...own.losers.map(({ source, reason }) => [source, reason]),
      ]
      : [["", "There is no chain yet; `nq run` fetches one."]]);
  },

  spend({ metered, reserved, left, left_today, budget, plan, plan_name, problem }) {
    facts("spend", problem
      ? [["", problem, "bad"]]
      : [
        ["metered", `${usd(metered)}${reserved ? `, and ${usd(reserved)} reserved` : ""}`],
        [plan_name, usd(plan)],
        ["left this month", `${usd(left)} of ${usd(budget)}`],
        ["left today", usd(left_today), left_today > 0 ? "" : "bad"],
      ]);
  },

  price: () => drawPrice(),
  strikes: () => drawStrikes(),
};

// ── charts ──

const charts = {};
const loadCharts = async () => {
  const [specs] = await Promise.all([fetch("charts.json").then((answer) => answer.json()), import("./vega.js")]);
  charts.price = await window.drawChart(at("price-chart"), specs.price);
  charts.C = await window.drawChart(at("calls-chart"), specs.strikes);
  charts.P = await window.drawChart(at("puts-chart"), structuredClone(specs.strikes));
  drawPrice();
  drawStrikes();
};

const drawPrice = () => {
  const own = state.price?.[product()];
  if (!charts.price || !own) return;
  const rows = own.time.map((ms, i) => ({
    wall: ms + state.clock.offset, price: own.price[i], label: `${time(ms)} CT · ${two(own.price[i])}`,
  }));
  write("price-title", `Price of ${own.symbol}, the last hour`);
  charts.price.data("price", rows).data("last", rows.slice(-1)).runAsync();
};

const drawStrikes = () => {
  const spans = state.strikes?.[product()];
  if (!spans) return write("strikes-note", "No trade in an option yet.");
  const select = at("span");
  if (!select.options.length) select.replaceChildren(...Object.keys(spans).map((name) => new Option(name)));
  const span = spans[select.value];
  const beyond = span.beyond ? `; not shown: ${whole(span.beyond)} at strikes farther than 5 %` : "";
  write("strikes-note", `from ${time(span.from, 5)} CT, strikes in steps of ${span.width}${beyond}`);
  const rows = { C: [], P: [] };
  const price = state.future?.find((own) => own.product === product())?.last;
  // Near the price even where nothing was traded, so that the chart does not jump with each trade.
  let [most, lowest, highest] = [4, price - 8 * span.width, price + 8 * span.width];
  span.strike.forEach((middle, i) => {
    const [bought, sold, unknown] = [span.bought[i], span.sold[i], span.undefined[i]];
    const [low, high] = [middle - 0.4 * span.width, middle + 0.4 * span.width];
    most = Math.max(most, bought, sold);
    if (!(lowest <= low)) lowest = low; // also if there is no price
    if (!(highest >= high)) highest = high;
    const other = unknown ? `, ${whole(unknown)} unknown` : "";
    const label = `${strike(middle)} · ${whole(bought)} bought, ${whole(sold)} sold${other}`;
    rows[span.option_type[i]].push({ low, high, bought, sold: -sold, label });
  });
  for (const [type, id] of [["C", "calls-note"], ["P", "puts-note"]]) {
    const [bought, sold] = ["bought", "sold"].map((name) => rows[type].reduce((sum, row) => sum + Math.abs(row[name]), 0));
    write(id, `${whole(bought)} bought, ${whole(sold)} sold`);
    if (!charts[type] || !(lowest < highest)) continue;
    charts[type].signal("most", most).signal("lowest", lowest).signal("highest", highest);
    charts[type].data("spot", price ? [{ low: price }] : []).data("strikes", rows[type]).runAsync();
  }
};

// ── receiving and drawing ──

const due = new Set();
let drawing = false;
const draw = () => {
  drawing = false;
  const sections = [...due];
  due.clear();
  for (const section of sections) {
    if (section === "tape") showTape();
    else if (state[section]) show[section](state[section]);
  }
};
const drawSoon = (...sections) => {
  sections.forEach((section) => due.add(section));
  if (!drawing) requestAnimationFrame(draw);
  drawing = true;
};

let source, last = "";
const open = () => {
  source?.close();
  source = new EventSource(`events?after=${encodeURIComponent(last)}`);
  source.onopen = () => write("link", "Live", "on");
  source.onerror = () => write("link", "The board does not answer; trying again …", "off");
  source.onmessage = ({ data, lastEventId }) => {
    if (last && lastEventId.split(":")[0] !== last.split(":")[0]) Object.assign(tape, { trades: [], next: null });
    last = lastEventId;
    const { tape: batches, ...sections } = JSON.parse(data);
    Object.assign(state, sections);
    if (sections.clock) clockSkew = sections.clock.now - Date.now();
    if (batches) {
      batches.forEach(addBatch);
      if (!at("pause").checked) drawSoon("tape");
    }
    drawSoon(...Object.keys(sections));
  };
};

const everything = () => drawSoon(...Object.keys(show), "tape");
for (const id of ["product", "span", "kind", "least", "pause"]) at(id).addEventListener("input", everything);
new ResizeObserver(() => { if (!at("pause").checked) drawSoon("tape"); }).observe(at("rows"));
document.addEventListener("visibilitychange", () => (document.hidden ? source.close() : open()));
setInterval(() => drawSoon("clock", "capture", "chain", "volatility"), 1000);
open();
loadCharts();
