"use strict";
// The trajectory viewer. Every text of a trajectory is hostile: it only ever becomes textContent.
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const place = document.getElementById("trajectory");
  if (!runs.length || !place) return;
  const FULL_ENTROPY = 2; // nats; a token of this entropy or more gets the deepest background
  const SOURCES = { PROMPT: "prompt", POLICY: "policy", TOOL: "tool", RETRIEVED: "retrieved" };
  const names = ["run", "step", "question", "row", "beside"];
  const menus = names.map((name) => document.getElementById("choose-" + name));
  const [runMenu, stepMenu, questionMenu, rowMenu, besideMenu] = menus;

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const isNumber = (value) => typeof value === "number";
  const show = (value, digits = 2) => (isNumber(value) ? value.toFixed(digits) : "–");
  const signed = (value) => (isNumber(value) ? (value > 0 ? "+" : "") + value.toFixed(3) : "–");
  const stepName = (each) => `${each.stage ?? "rl"} ${each.step}`;
  const segmentsOf = (each) =>
    (Array.isArray(each.segments) ? each.segments : []).filter((s) => s && typeof s === "object");
  const clip = (text, length) => (text.length > length ? text.slice(0, length) + "…" : text);

  const inRun = () => runs[runMenu.value].trajectories;
  const inStep = () => inRun().filter((each) => stepName(each) === stepMenu.value);
  const inQuestion = () => inStep().filter((each) => String(each.question_id) === questionMenu.value);

  const fill = (menu, options) => {
    const kept = menu.value;
    menu.replaceChildren(
      ...options.map(([value, text]) => {
        const option = make("option", "", text);
        option.value = value;
        return option;
      }),
    );
    if (options.some(([value]) => String(value) === kept)) menu.value = kept;
  };
  const distinct = (list, key, text) => [...new Map(list.map((each) => [key(each), text(each)]))];
  const rowText = (each) => {
    const retrieved = segmentsOf(each).filter((s) => s.source === "RETRIEVED").length;
    const kind = each.off_policy ? "not sampled in this step"
      : each.hybrid ? `hybrid, ${retrieved} retrieved`
      : each.stage === "heldout" ? "greedy" : "on-policy";
    return `${each.row}: ${kind}, reward ${show(each.reward)}`;
  };

  const refill = (from) => {
    if (from < 1) fill(stepMenu, distinct(inRun(), stepName, stepName));
    if (from < 2)
      fill(questionMenu, distinct(inStep(), (t) => String(t.question_id),
        (t) => clip(`${t.question_id}: ${t.question ?? ""}`, 70)));
    if (from < 3) fill(rowMenu, inQuestion().map((each, index) => [index, rowText(each)]));
    if (from < 4) fillBeside();
    const shown = [rowMenu.value, besideMenu.value].filter((value) => value !== "");
    place.className = shown.length > 1 ? "pair" : "";
    const rows = shown.map((index) => inQuestion()[Number(index)]).filter(Boolean);
    const entropies = rows.flatMap(segmentsOf).map((s) => s.entropy).filter(isNumber);
    place.replaceChildren(...rows.map((each) => drawRow(each, Math.max(0, ...entropies))));
  };
  // beside a rollout: at first one of the other kind, a hybrid one beside an on-policy one
  const fillBeside = () => {
    const rows = inQuestion().map((each, index) => [index, rowText(each)]);
    const present = inQuestion()[Number(rowMenu.value)];
    besideMenu.value = "";
    fill(besideMenu, [["", "nothing"], ...rows.filter(([index]) => String(index) !== rowMenu.value)]);
    const other = inQuestion().findIndex((each) => Boolean(each.hybrid) !== Boolean(present?.hybrid));
    if (other >= 0) besideMenu.value = String(other);
  };

  const fact = (name, value) => {
    const element = make("div");
    element.append(make("span", "", name), make("strong", "", value));
    return element;
  };

  const policyText = (segment) => {
    const text = make("div", "text policy");
    const tokens = Array.isArray(segment.tokens) ? segment.tokens : [];
    const entropy = Array.isArray(segment.token_entropy) ? segment.token_entropy : [];
    if (!tokens.length) text.textContent = String(segment.text ?? "");
    tokens.forEach((token, index) => {
      const span = make("span", "", String(token));
      if (isNumber(entropy[index])) {
        const depth = Math.min(1, Math.max(0, entropy[index] / FULL_ENTROPY));
        span.style.backgroundColor = `rgba(var(--policy), ${(0.6 * depth).toFixed(3)})`;
        span.title = `entropy ${show(entropy[index], 3)} nats`;
      }
      text.append(span);
    });
    return text;
  };

  const meter = (share) => {
    const outer = make("div", "meter");
    const inner = make("div");
    inner.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
    outer.append(inner);
    return outer;
  };

  // step entropies of the nearest policy steps around a segment
  const around = (segments, index) => {
    const entropy = (s) => (s.source === "POLICY" && isNumber(s.entropy) ? s.entropy : undefined);
    const known = (list) => list.map(entropy).find(isNumber);
    return [known(segments.slice(0, index).reverse()), known(segments.slice(index + 1))];
  };

  const drawSegment = (segment, index, segments, most) => {
    const source = SOURCES[segment.source] ?? "prompt";
    const row = make("div", "segment");
    const side = make("aside");
    side.append(make("b", "", source === "prompt" ? "prompt" : `step ${segment.step} · ${source}`));
    if (isNumber(segment.entropy)) {
      side.append(make("div", "", `entropy ${show(segment.entropy, 3)} nats`));
      side.append(meter(most > 0 ? segment.entropy / most : 0));
    }
    if (source === "retrieved") {
      const [before, after] = around(segments, index);
      side.append(make("div", "", `entropy before ${show(before, 3)}`));
      side.append(make("div", "", `after ${show(after, 3)} nats`));
      side.append(make("div", "", `Z ${signed(segment.z)}`));
    }
    if (Array.isArray(segment.tokens) && segment.tokens.length)
      side.append(make("div", "", `${segment.tokens.length} tokens`));
    const text = source === "policy" ? policyText(segment)
      : make("div", "text " + source, String(segment.text ?? ""));
    row.append(side, text);
    return row;
  };

  // `most` is the largest step entropy of the rollouts that are shown: their bars have one scale
  const drawRow = (each, most) => {
    const column = make("div", "rollout");
    const facts = make("div", "facts");
    const answers = Array.isArray(each.answers) ? each.answers.join(" | ") : "";
    facts.append(fact("row", rowText(each)), fact("status", String(each.status ?? "–")),
      fact("advantage", signed(each.advantage)), fact("retrieval reward", signed(each.retrieval_reward)),
      fact("gold", answers), fact("question", String(each.question ?? "–")));
    const segments = segmentsOf(each);
    column.append(facts, ...segments.map((each, i) => drawSegment(each, i, segments, most)));
    return column;
  };

  const move = (by) => {
    const all = inRun();
    const present = all.indexOf(inQuestion()[rowMenu.value]);
    const next = all[(present + by + all.length) % all.length];
    stepMenu.value = stepName(next);
    refill(1);
    questionMenu.value = String(next.question_id);
    refill(2);
    rowMenu.value = String(inQuestion().indexOf(next));
    refill(3);
  };

  fill(runMenu, runs.map((each, index) => [index, each.label]));
  menus.forEach((menu, index) => menu.addEventListener("change", () => refill(index)));
  document.getElementById("previous").addEventListener("click", () => move(-1));
  document.getElementById("next").addEventListener("click", () => move(1));
  refill(0);
})();
