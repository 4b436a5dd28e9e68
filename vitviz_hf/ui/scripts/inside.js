// Tab Look inside: what the page does by itself. Values come once for a layer, in 8 bits; hovering asks for nothing.

const SVG = "http://www.w3.org/2000/svg";
const ARROWS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
const CLASSES = ["#4e9bff", "#ff9d3c", "#5fd38d", "#ff6b8b", "#b68cff", "#ffd84d", "#3fd6d0", "#d99a6c", "#ff8ee6", "#a6c34c"];
const OTHER = "#8a8f98";

const decode = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => new Float32Array(decode(text).buffer);
const within = (at, n) => Math.min(Math.max(at, 0), n - 1);
const short = (x) => Number(x.toPrecision(3)).toString();
const percent = (x) => `${(100 * x).toFixed(x < 0.0995 ? 1 : 0)} %`;
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const argmax = (values) => values.reduce((best, x, i) => (x > values[best] ? i : best), 0);
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

/** 256 colors between the stops. */
const ramp = (stops) => Array.from({length: 256}, (_, i) => {
  const at = i / 255 * (stops.length - 1), j = Math.min(Math.floor(at), stops.length - 2);
  const [a, b] = [rgb(stops[j]), rgb(stops[j + 1])];
  return a.map((x, k) => Math.round(x + (b[k] - x) * (at - j)));
});

/** An element with attributes and children. */
const make = (name, attributes = {}, ...children) => {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  made.append(...children);
  return made;
};

/** Paints values on a canvas of as many pixels as there are patches. */
const paint = (canvas, [rows, cols], color) => {
  if (canvas.width !== cols) canvas.width = cols;
  if (canvas.height !== rows) canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(cols, rows);
  for (let i = 0; i < rows * cols; i++) image.data.set(color(i), 4 * i);
  context.putImageData(image, 0, 0);
};

/** Lines by layer or step, each {name, values, dashed}. */
const chart = (lines, {label, x, marked, log}) => {
  const [w, h, left, foot] = [320, 170, 40, 22], of = (v) => (log ? Math.log10(Math.max(v, 1e-6)) : v);
  const all = lines.flatMap((line) => Array.from(line.values, of)), [low, high] = [Math.min(...all), Math.max(...all)];
  const px = (i, n) => left + (w - left - 8) * (n > 1 ? i / (n - 1) : 0.5);
  const py = (v) => 8 + (h - foot - 8) * (1 - (of(v) - low) / (high - low || 1));
  const drawn = make("svg:svg", {viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": label, class: "chart"});
  const write = (text, at) => drawn.append(make("svg:text", at, text));
  drawn.append(make("svg:path", {d: `M${left} 8V${h - foot}H${w - 8}`, class: "axes"}));
  [low, high].forEach((v) => {
    const told = short(log ? 10 ** v : v);
    write(told, {x: left - 5, y: 8 + (h - foot - 8) * (1 - (v - low) / (high - low || 1)) + 4, "text-anchor": "end"});
  });
  write(x[0], {x: left, y: h - 6});
  write(x[1], {x: w - 8, y: h - 6, "text-anchor": "end"});
  lines.forEach((line, k) => {
    const points = Array.from(line.values, (v, i) => `${px(i, line.values.length)},${py(v)}`).join(" ");
    drawn.append(make("svg:polyline", {points, class: `line line${k}`}));
  });
  if (marked !== undefined) {
    const at = px(marked, lines[0].values.length);
    drawn.append(make("svg:path", {d: `M${at} 8V${h - foot}`, class: "now"}));
  }
  const key = make("p", {class: "key"});
  lines.forEach((line, k) => key.append(make("span", {}, make("i", {class: `swatch line${k}`}), line.name), " "));
  return make("div", {}, drawn, key);
};

export const start = (element, server, trigger) => {
  const box = element.querySelector(".inside");
  if (!box || element.shows === box.dataset.facts) return;
  // The page changes what stands there to what came, so listeners of the pictures before it are still there.
  element.shows = box.dataset.facts;
  element.ends?.();
  const closing = new AbortController(), until = {signal: closing.signal};
  const facts = JSON.parse(box.dataset.facts), state = {...facts.state}, known = new Map();
  const find = (selector) => box.querySelector(selector);
  const views = [...box.querySelectorAll(".view")], panel = find(".panel"), lines = find(".lines");
  const colors = ramp(facts.palettes.sequential), signed = ramp(facts.palettes.diverging);
  let hovered = null, dragged = null, waiting = 0, built = "";

  // What is asked of the server, once.
  const need = (...asked) => {
    const name = JSON.stringify(asked), found = known.get(name);
    if (found) return found.value;
    const entry = {};
    known.set(name, entry);
    server.values([facts.key, ...asked]).then((text) => {
      if (!text) return closing.signal.aborted || trigger("submit");
      entry.value = JSON.parse(text);
      render();
    }, () => {
      entry.value = {error: "The server does not answer; reload the page."};
      render();
    });
    return undefined;
  };

  // Where the query is: a box of patches of one picture, or a prefix token.
  const layer = () => facts.layers[state.layer];
  const grid = () => (facts.windows && state.mode === "heads" ? layer().queries : layer().grid);
  const parse = (text) => {
    const prefix = facts.prefix.indexOf(text);
    if (prefix >= 0 && prefix < layer().prefix) return {prefix, picture: 0};
    const [, , picture, r, c, , r1, c1] = text.match(/^((\d):)?(\d+),(\d+)(-(\d+),(\d+))?$/) ?? [];
    const [rows, cols] = grid();
    if (r === undefined) return {picture: 0, box: [rows >> 1, cols >> 1, rows >> 1, cols >> 1]};
    const from = [within(+r, rows), within(+c, cols)], to = [within(+(r1 ?? r), rows), within(+(c1 ?? c), cols)];
    return {picture: within(+(picture ?? 0), views.length), box: [...from, ...to]};
  };
  const write = ({prefix, picture, box: at}) => {
    if (prefix !== undefined) return facts.prefix[prefix];
    const [a, b, c, d] = at;
    return `${picture ? `${picture}:` : ""}${a},${b}${a === c && b === d ? "" : `-${c},${d}`}`;
  };
  const query = () => hovered ?? parse(state.token);
  const named = (name) => (name === "cls" ? "class token" : name);
  const told = ({prefix, picture, box: at}) => {
    if (prefix !== undefined) return `the ${named(facts.prefix[prefix])}`;
    const [a, b, c, d] = at, one = a === c && b === d;
    const where = one ? `patch ${a},${b}` : `patches ${a},${b} to ${c},${d}`;
    return views.length > 1 ? `${where} of ${facts.pictures[picture]}` : where;
  };
  const inside = ({prefix, box: at}) => {
    if (prefix !== undefined) return [prefix];
    const [a, b, c, d] = at, places = [];
    for (let r = a; r <= c; r++) for (let k = b; k <= d; k++) places.push(layer().prefix + r * grid()[1] + k);
    return places;
  };
  const place = (i) => `${Math.floor(i / grid()[1])},${i % grid()[1]}`;

  // The modes: each says what is to be seen, or nothing yet. `maps` has values [P] for each picture.
  const plain = (maps, scale, what) => ({
    maps,
    scale,
    color: (k) => (i) => [...colors[within(Math.round(255 * (maps[k][i] - scale[0]) / (scale[1] - scale[0] || 1)), 256)], 255],
    blend: "screen",
    alt: (k) => `${what} on ${facts.pictures[k]}: highest ${short(maps[k][argmax(maps[k])])} at patch ${place(argmax(maps[k]))}`,
  });
  // Attention in windows is asked for one patch at a time: the chosen one.
  const windowed = () => {
    const at = parse(state.token), [row, col] = at.box && !at.picture ? at.box : grid().map((n) => n >> 1);
    const got = need("window", state.layer, row, col);
    if (!got || got.error) return got;
    got.values ??= got.heads.map(floats);
    const over = (how) => got.values[0].map((_, i) => how(got.values.map((v) => v[i])));
    got.every ??= {
      mean: over((all) => all.reduce((a, b) => a + b) / all.length),
      maximum: over((all) => Math.max(...all)),
      ...Object.fromEntries(got.values.map((v, h) => [`head ${h}`, v])),
    };
    const name = state.head in got.every ? state.head : "mean", map = got.every[name];
    const what = `Attention (${name}) of patch ${row},${col}, layer ${state.layer},`;
    return {
      ...plain([map], [0, map[argmax(map)]], what),
      grid: got.grid,
      only: 1,
      alt: () => `${what} on ${facts.pictures[0]}: highest ${short(map[argmax(map)])}`,
      said: `Where patch ${row},${col} looks inside its window: ${name}. Click another patch.`,
      heads: {shown: Object.keys(got.every), name, row: (head) => got.every[head], size: got.grid},
    };
  };
  const modes = {
    pca: () => {
      const got = need("components");
      if (!got || got.error) return got;
      const own = got.layers[state.layer];
      own.pixels ??= own.colors.map(decode);
      own.front ??= own.foreground.map(decode);
      const only = find("[data-front]").checked, share = own.explained.map(percent);
      return {
        color: (k) => (i) => (only && !own.front[k][i] ? [0, 0, 0, 235] : [...own.pixels[k].subarray(3 * i, 3 * i + 3), 255]),
        blend: "normal",
        alt: (k) => `Three components of the patches of layer ${state.layer} as red, green and blue on ${facts.pictures[k]}`,
        said: `Red, green and blue are the first three components of the patches; they hold ${share.join(", ")} of the ` +
          "variance. Patches of one color are alike to the model.",
        got: own,
      };
    },
    similarity: () => {
      const got = need("tokens", state.layer);
      if (!got || got.error) return got;
      const {n, tokens, features} = got, at = query(), prefix = layer().prefix;
      got.values ??= new Int8Array(decode(got.packed).buffer);
      const mean = new Float32Array(features);
      inside(at).forEach((t) => {
        for (let f = 0, o = (at.picture * tokens + t) * features; f < features; f++) mean[f] += got.values[o + f];
      });
      const length = Math.hypot(...mean) || 1;
      const maps = Array.from({length: n}, (_, k) => Float32Array.from({length: tokens - prefix}, (_, i) => {
        let sum = 0;
        for (let f = 0, o = (k * tokens + prefix + i) * features; f < features; f++) sum += mean[f] * got.values[o + f];
        return sum / length / 127;
      }));
      const low = Math.max(0, Math.min(...maps.map((m) => m.reduce((a, b) => Math.min(a, b)))));
      const drawn = plain(maps, [low, 1], `Cosine to ${told(at)}, layer ${state.layer},`);
      const own = new Set(inside(at)), other = 1 - at.picture;
      const rest = maps.map((m, k) => m.map((x, i) => (k === at.picture && own.has(prefix + i) ? -2 : x)));
      const best = [...rest[at.picture].keys()].sort((a, b) => rest[at.picture][b] - rest[at.picture][a]).slice(0, 4);
      drawn.marks = [];
      drawn.marks[at.picture] = best;
      drawn.said = `Cosine of every patch to ${told(at)}. Framed: the four most alike, ` +
        best.map((i) => `${place(i)} (${maps[at.picture][i].toFixed(2)})`).join(", ") + ".";
      if (n > 1) {
        const match = argmax(maps[other]);
        drawn.marks[other] = [match];
        if (at.prefix === undefined) drawn.line = [at, other, match];
        drawn.said += ` In ${facts.pictures[other]} it is ${place(match)} (${maps[other][match].toFixed(2)}).`;
      }
      return drawn;
    },
    heads: () => {
      if (facts.windows) return windowed();
      const got = need("attention", state.layer);
      if (!got || got.error) return got;
      const {tokens, names} = got, at = query(), prefix = got.prefix;
      got.values ??= got.pictures.map((p) => p.heads.map(({packed, top}) => ({packed: decode(packed), top: floats(top)})));
      const rows = (k, h) => {
        const {packed, top} = got.values[k][h], row = new Float32Array(tokens), asked = inside(at);
        asked.forEach((t) => {
          for (let j = 0; j < tokens; j++) row[j] += packed[t * tokens + j] * top[t] / 255 / asked.length;
        });
        return row;
      };
      const heads = names.map((name, h) => h).filter((h) => names[h] !== "rollout");
      const row = (k, name) => {
        if (name === "mean" || name === "maximum") {
          const every = heads.map((h) => rows(k, h));
          return every[0].map((_, j) => (name === "mean" ? every.reduce((s, r) => s + r[j], 0) / every.length : Math.max(...every.map((r) => r[j]))));
        }
        return rows(k, within(names.indexOf(name), names.length));
      };
      const shown = ["mean", "maximum", ...names].filter((name, i, all) => all.indexOf(name) === i && (heads.length > 1 || name !== "maximum"));
      const name = shown.includes(state.head) ? state.head : "mean";
      const full = views.map((_, k) => row(k, name)), maps = full.map((r) => r.subarray(prefix));
      const drawn = plain(maps, [0, Math.max(...maps.map((m) => m[argmax(m)]))], `Attention (${name}) of ${told(at)}, layer ${state.layer},`);
      const first = full[at.picture], share = facts.prefix.slice(0, prefix).map((p, i) => `${percent(first[i])} to the ${named(p)}`);
      const how = {rollout: "joined over the layers up to this one", mean: "mean over heads", maximum: "maximum over heads"}[name] ?? name;
      drawn.said = `Where ${told(at)} ${told(at).startsWith("patches") ? "look" : "looks"}: ${how}.` + (share.length && name !== "maximum" ? ` ${share.join(", ")}.` : "") + (got.note ? ` ${got.note}` : "");
      drawn.heads = {shown, name, row: (head) => row(at.picture, head).subarray(prefix)};
      return drawn;
    },
    norms: () => {
      const got = need("norms");
      if (!got || got.error) return got;
      const own = got.layers[state.layer], prefix = own.prefix;
      own.values ??= own.norms.map(floats);
      const maps = own.values.map((v) => v.subarray(prefix));
      const low = Math.min(...maps.map((m) => m.reduce((a, b) => Math.min(a, b)))), high = Math.max(...maps.map((m) => m[argmax(m)]));
      const drawn = plain(maps, [Math.min(low, high), high], `Length of the tokens of layer ${state.layer}`);
      drawn.marks = own.outliers.map((all) => all.filter((t) => t >= prefix).map((t) => t - prefix));
      const n = drawn.marks[0].length;
      drawn.said = `${n || "No"} patch${n === 1 ? "" : "es"} outshine${n === 1 ? "s" : ""} the others here${n ? " (framed)" : ""}: ${got.rule}. ${own.note ?? ""}`;
      if (prefix) drawn.said += ` Beside them: ${facts.prefix.slice(0, prefix).map((p, i) => `${named(p)} ${short(own.values[0][i])}`).join(", ")}.`;
      drawn.got = got;
      return drawn;
    },
    lens: () => {
      const got = need("lens");
      if (!got || got.error) return got;
      const own = got.layers[state.layer], prefix = own.prefix;
      own.best ??= own.top.map((t) => new Uint16Array(decode(t).buffer));
      own.share ??= own.p.map(decode);
      const counts = new Map();
      own.best.forEach((best) => best.subarray(prefix).forEach((c) => counts.set(c, (counts.get(c) ?? 0) + 1)));
      const order = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || a - b);
      const shade = (c) => rgb(CLASSES[order.indexOf(c)] ?? OTHER);
      const at = query(), t = inside(at)[0], n = Math.floor(grid()[0] * grid()[1] * views.length);
      const name = (c) => got.labels[c].split(",")[0];
      const say = (k, i) => `${name(own.best[k][i])} ${percent(own.share[k][i] / 255)}`;
      return {
        color: (k) => (i) => [...shade(own.best[k][prefix + i]), 90 + 0.6 * own.share[k][prefix + i]],
        blend: "normal",
        alt: (k) => `Likeliest label of each patch after layer ${state.layer} on ${facts.pictures[k]}: most often ${name(order[0])}`,
        said: `The model's own head on each token after layer ${state.layer}. ${told(at)[0].toUpperCase()}${told(at).slice(1)}: ${say(at.picture, t)}.` +
          (prefix && at.prefix === undefined ? ` Class token: ${say(0, 0)}.` : ""),
        legend: order.slice(0, CLASSES.length).map((c, i) => [CLASSES[i], name(c), counts.get(c) / n]),
      };
    },
    relevance: () => {
      if (!state.why) return {said: facts.whyHelp, idle: true};
      const got = need("why", state.why, state.method);
      if (!got || got.error) return got;
      got.values ??= floats(got.map);
      const drawn = plain([got.values], got.scale, `Relevance for ${got.target}`);
      if (got.scale[0] < 0) {
        drawn.color = () => (i) => {
          const share = got.values[i] / got.scale[1];
          return [...signed[within(Math.round(127.5 * (1 + share)), 256)], Math.round(40 + 200 * Math.abs(share))];
        };
        drawn.blend = "normal";
      }
      return {...drawn, grid: got.grid, only: 1, said: got.said, got};
    },
    change: () => {
      if (!state.turn) return {said: facts.turnHelp, idle: true};
      const got = need("change", state.turn, Number(state.factor), state.layer);
      if (!got || got.error) return got;
      got.pixels ??= [got.before, got.after].map(decode);
      const which = find("[data-before]").checked ? 0 : 1;
      return {
        color: () => (i) => [...got.pixels[which].subarray(3 * i, 3 * i + 3), 255],
        blend: "normal",
        grid: got.grid,
        only: 1,
        alt: () => `Three components of the patches of ${facts.pictures[0]} after layer ${state.layer}, ${which ? "changed" : "as they were"}`,
        said: got.said,
        got,
      };
    },
  };

  // The panel beside the picture: made anew for another mode or layer, filled at every move.
  const canvases = (items, size, draw, pressed, choose) => {
    const list = make("div", {class: "small", role: "group", "aria-label": "Choose one"});
    items.forEach((name, i) => {
      const canvas = make("canvas"), button = make("button", {type: "button", "aria-pressed": String(pressed(i))}, canvas, make("span", {}, name));
      paint(canvas, size(i), draw(i));
      button.addEventListener("click", () => choose(i));
      list.append(button);
    });
    return list;
  };
  const strip = (draw) => canvases(facts.layers.map((_, i) => `layer ${i}`), (i) => facts.layers[i].grid, draw, (i) => i === state.layer, (i) => set({layer: i}));
  const fill = {
    pca: ({got}) => {
      const all = need("components");
      const bars = make("div", {class: "bars"});
      got.explained.forEach((x, i) => bars.append(make("span", {class: `bar${i}`, style: `width: ${100 * x}%`}), make("small", {}, percent(x))));
      return [bars, strip((l) => {
        const own = all.layers[l];
        own.pixels ??= own.colors.map(decode);
        return (i) => [...own.pixels[0].subarray(3 * i, 3 * i + 3), 255];
      })];
    },
    heads: ({heads}) => [canvases(
      heads.shown,
      () => heads.size ?? grid(),
      (i) => {
        const values = heads.row(heads.shown[i]), top = values[argmax(values)] || 1;
        return (j) => [...colors[within(Math.round(255 * values[j] / top), 256)], 255];
      },
      (i) => heads.shown[i] === heads.name,
      (i) => set({head: heads.shown[i]}),
    )],
    norms: ({got}) => {
      const by = (f) => got.layers.map((own) => f(floats(own.norms[0]).subarray(own.prefix)));
      const shown = [
        {name: "longest patch", values: by((v) => v[argmax(v)])},
        {name: "median patch", values: by(median)},
      ];
      if (layer().prefix) shown.push({name: named(facts.prefix[0]), values: got.layers.map((own) => floats(own.norms[0])[0])});
      return [chart(shown, {label: "Length of tokens by layer", x: ["layer 0", `layer ${got.layers.length - 1}`], marked: state.layer, log: true})];
    },
    lens: ({legend}) => {
      const list = make("ul", {class: "legend"});
      legend.forEach(([color, name, share]) => list.append(make("li", {}, make("span", {class: "dot", style: `background: ${color}`}), `${name} `, make("small", {}, percent(share)))));
      return [list];
    },
    relevance: ({got}) => got.curves ? [
      chart(got.curves.deletion, {label: got.curves.told, x: ["nothing removed", "all removed"]}),
      chart(got.curves.insertion, {label: got.curves.told, x: ["nothing shown", "all shown"]}),
      make("p", {}, got.curves.told),
    ] : [],
    change: ({got}) => {
      const list = make("table"), body = make("tbody");
      got.probabilities.forEach(([name, before, after]) => body.append(make("tr", {}, make("th", {scope: "row"}, name), make("td", {}, percent(before)), make("td", {}, percent(after)))));
      list.append(make("thead", {}, make("tr", {}, make("th", {scope: "col"}, "label"), make("th", {scope: "col"}, "before"), make("th", {scope: "col"}, "after"))), body);
      const features = make("ol", {class: "changed"});
      got.features.forEach(([name, before, after]) => features.append(make("li", {}, make("code", {}, name), ` ${short(before)} to ${short(after)}`)));
      return [...(got.probabilities.length ? [list] : []), make("h4", {}, "Features that change most"), features];
    },
  };

  const draw = (drawn) => {
    const size = drawn.grid ?? grid(), at = query();
    views.forEach((view, k) => {
      const canvas = view.querySelector("canvas"), hidden = drawn.idle || k >= (drawn.only ?? views.length);
      canvas.hidden = hidden;
      view.dataset.blend = hidden ? "none" : drawn.blend;
      if (!hidden) {
        paint(canvas, size, drawn.color(k));
        canvas.setAttribute("aria-label", drawn.alt(k));
      }
      const marks = view.querySelector(".marks");
      marks.replaceChildren(...(drawn.marks?.[k] ?? []).map((i) => frame("mark", size, [Math.floor(i / size[1]), i % size[1]])));
      if (!drawn.grid && at.prefix === undefined && at.picture === k) marks.append(frame("frame", size, at.box));
      view.querySelector(".seen").style.backgroundSize = `${100 / size[1]}% ${100 / size[0]}%`;
    });
    const bar = find(".scale");
    bar.hidden = !drawn.scale;
    if (drawn.scale) {
      bar.querySelector(".low").textContent = short(drawn.scale[0]);
      bar.querySelector(".high").textContent = short(drawn.scale[1]);
      const stops = drawn.scale[0] < 0 && drawn.blend === "normal" ? facts.palettes.diverging : facts.palettes.sequential;
      bar.querySelector(".colors").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    }
    connect(drawn.line, size);
  };
  const frame = (kind, [rows, cols], [a, b, c = a, d = b]) => make("span", {class: kind, style:
    `left: ${100 * b / cols}%; top: ${100 * a / rows}%; width: ${100 * (d - b + 1) / cols}%; height: ${100 * (c - a + 1) / rows}%`});
  const connect = (line, [rows, cols]) => {
    lines.replaceChildren();
    if (!line) return;
    const [{picture, box: [a, b, c, d]}, other, match] = line, base = lines.getBoundingClientRect();
    const point = (k, r, q) => {
      const seen = views[k].getBoundingClientRect();
      return [seen.left - base.left + seen.width * q / cols, seen.top - base.top + seen.height * r / rows];
    };
    const [x, y] = point(picture, (a + c + 1) / 2, (b + d + 1) / 2);
    const [u, v] = point(other, Math.floor(match / cols) + 0.5, match % cols + 0.5);
    ["under", "over"].forEach((kind) => lines.append(make("svg:line", {x1: x, y1: y, x2: u, y2: v, class: kind})));
  };

  const render = () => {
    if (closing.signal.aborted || !box.isConnected) return;
    const drawn = modes[state.mode](), busy = !drawn;
    box.classList.toggle("busy", busy);
    find(".said").textContent = busy ? "Computing ..." : drawn.error ?? drawn.said;
    find(".said").classList.toggle("error", Boolean(drawn?.error));
    if (busy) return;
    if (drawn.error) {
      panel.replaceChildren();
      return draw({idle: true});
    }
    draw(drawn);
    const hadFocus = [...panel.querySelectorAll("button")].indexOf(document.activeElement);
    const wanted = JSON.stringify([state, views.length]);
    if (state.mode === "heads" || state.mode === "lens" || built !== wanted) {
      panel.replaceChildren(...(drawn.idle ? [] : fill[state.mode]?.(drawn) ?? []));
      if (hadFocus >= 0) panel.querySelectorAll("button")[hadFocus]?.focus();
    }
    built = wanted;
  };

  // What the visitor does.
  const controls = () => {
    box.dataset.mode = state.mode;
    box.querySelectorAll("[data-choose]").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.choose === state.mode)));
    box.querySelectorAll("[data-token]").forEach((b) => {
      b.hidden = facts.prefix.indexOf(b.dataset.token) >= layer().prefix;
      b.setAttribute("aria-pressed", String(b.dataset.token === state.token));
    });
    find(".layer input").value = state.layer;
    find(".layer output").textContent = `${state.layer}`;
    views.forEach((view, k) => {
      const [rows, cols] = grid();
      view.querySelector(".seen").setAttribute("aria-label", `${facts.pictures[k]}, ${rows} x ${cols} patches, ${told(parse(state.token))} chosen. Arrow keys move, with Shift they make a box.`);
    });
  };
  const set = (change) => {
    Object.assign(state, change);
    find(".saved").textContent = "";
    controls();
    render();
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      (window.vitvizPicked ??= {}).inside = facts.kept.map((name) => String(state[name] ?? ""));
      trigger("input");
    }, 250);
  };
  const at = (seen, event) => {
    const [rows, cols] = grid(), area = seen.getBoundingClientRect();
    return [within(Math.floor((event.clientY - area.top) / area.height * rows), rows), within(Math.floor((event.clientX - area.left) / area.width * cols), cols)];
  };
  const spanned = ([a, b], [c, d]) => [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];
  views.forEach((view, picture) => {
    const seen = view.querySelector(".seen");
    seen.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch") return;
      const now = at(seen, event);
      hovered = {picture, box: dragged ? spanned(dragged, now) : [...now, ...now]};
      requestAnimationFrame(render);
    }, until);
    seen.addEventListener("pointerleave", () => {
      hovered = dragged = null;
      render();
    }, until);
    seen.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "touch" && event.button === 0) dragged = at(seen, event);
    }, until);
    seen.addEventListener("click", (event) => {
      if (event.detail === 0) return;
      const now = at(seen, event), from = dragged ?? now;
      dragged = null;
      set({token: write({picture, box: spanned(from, now)})});
    }, until);
    seen.addEventListener("keydown", (event) => {
      const step = ARROWS[event.key], [rows, cols] = grid();
      if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      hovered = null;
      const now = parse(state.token), [a, b, c, d] = now.box && now.picture === picture ? now.box : [rows >> 1, cols >> 1, rows >> 1, cols >> 1];
      const to = [within(c + step[0], rows), within(d + step[1], cols)];
      set({token: write({picture, box: event.shiftKey ? spanned([a, b], to) : [...to, ...to]})});
    }, until);
  });
  box.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.choose) set({mode: button.dataset.choose});
    if (button?.dataset.token) set({token: button.dataset.token});
    if (button?.dataset.file) save(button.dataset.file);
  }, until);
  find(".layer input").addEventListener("input", (event) => set({layer: Number(event.target.value)}), until);
  find(".photograph input").addEventListener("input", (event) => box.style.setProperty("--photo", event.target.value / 100), until);
  box.querySelectorAll("[type=checkbox]").forEach((check) => check.addEventListener("change", () => {
    built = "";
    render();
  }, until));
  const said = (name) => find(`[name=${name}]`);
  find("form.why").addEventListener("submit", (event) => {
    event.preventDefault();
    set({why: said("why").value.trim(), method: said("method").value});
  }, until);
  find("form.change").addEventListener("submit", (event) => {
    event.preventDefault();
    set({turn: said("turn").value.trim(), factor: said("factor").value || "0"});
  }, until);
  const save = async (kind) => {
    const {layer, head, why, method, turn, factor} = state, token = write(parse(state.token));
    const asked = ["file", kind, state.mode, {layer, head, token, why, method, turn, factor}];
    find(".saved").textContent = "Making the file ...";
    const text = await server.values([facts.key, ...asked]).catch(() => "");
    const answer = text ? JSON.parse(text) : {error: "The file could not be made; reload the page."};
    find(".saved").textContent = answer.error ?? `${answer.name} is saved.`;
    if (answer.error) return;
    const link = make("a", {href: URL.createObjectURL(new Blob([decode(answer.data)])), download: answer.name});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const resized = new ResizeObserver(() => render());
  resized.observe(box);
  element.ends = () => {
    closing.abort();
    resized.disconnect();
    clearTimeout(waiting);
  };
  controls();
  render();
};
