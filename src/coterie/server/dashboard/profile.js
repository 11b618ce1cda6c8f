// What the profile says: which experts handle a domain or modality, and what one of them does.

import { askJson } from "./client.js";
import { count, counted, element, percent } from "./figures.js";
import { name } from "./heat.js";

const find = (id) => document.getElementById(id);

export class Explorer {
  constructor({ heat, onLocked }) {
    this.heat = heat;
    this.onLocked = onLocked;
    find("profile-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.rank();
    });
  }

  async know(model) {
    find("profile-empty").hidden = model.profile;
    if (!model.profile || this.summary) return;
    await this.asked("Reading the profile…", async () => {
      const summary = await askJson("/coterie/profile");
      this.summary = summary;
      const form = find("profile-form");
      choices(form.elements.domain, summary.domains);
      choices(form.elements.modality, summary.modalities);
      form.elements.domain.value = Object.keys(summary.domains)[0] ?? "";
      form.hidden = false;
      return `${count(summary.tokens)} tokens of ${summary.model} were recorded.`;
    });
  }

  async rank() {
    const fields = find("profile-form").elements;
    const body = { limit: 40 };
    for (const one of ["domain", "modality", "phase"]) if (fields[one].value) body[one] = fields[one].value;
    if (!body.domain && !body.modality) {
      find("profile-status").textContent = "Choose a domain or a modality.";
      return;
    }
    await this.asked("Asking the profile…", async () => {
      const ranking = await askJson("/coterie/profile/rank", { body });
      find("card").hidden = true;
      find("profile-scroll").hidden = false;
      const most = Math.max(...ranking.experts.map((one) => one.specialisation), 1e-9);
      find("ranking").tBodies[0].replaceChildren(...ranking.experts.map((one) => this.row(one, most)));
      this.heat.mark(new Set(ranking.experts.filter((one) => one.specialist || !ranking.specialists).map((one) => `${name(one)}/${one.expert_id}`)));
      const tested = ranking.blocks >= this.summary.least_blocks
        ? `${counted(ranking.specialists, "specialist")} among ${count(ranking.total)} experts`
        : "Too little was recorded to tell specialists from chance";
      return `${tested}; ${count(ranking.tokens)} tokens. The map outlines ${ranking.specialists ? "the specialists listed" : "those listed"}.`;
    });
  }

  row(one, most) {
    const show = element("button", { type: "button", class: "quiet" }, `layer ${one.layer}, ${one.expert_id}`);
    show.addEventListener("click", () => this.card(one));
    const bar = element("b");
    bar.style.width = `${(100 * one.specialisation) / most}%`;
    const meter = element("span", { class: "meter", "aria-hidden": "true" }, bar);
    const interval = one.low == null ? "" : `${percent(one.low)} – ${percent(one.high)}`;
    return element("tr", {}, element("th", { scope: "row" }, show),
      ...[[meter, element("span", { class: "number" }, percent(one.specialisation))], [interval], [one.lift.toFixed(2)], [percent(one.others)], [one.specialist ? "yes" : ""]]
        .map((inside) => element("td", {}, ...inside)));
  }

  async card(one) {
    await this.asked("Asking the profile…", async () => {
      const { component, layer, bank, expert_id: expert } = one;
      const card = await askJson("/coterie/profile/expert", { body: { component, layer, bank, expert } });
      const shares = [...card.domains, ...card.modalities].map(({ name: of, figures }) => element("tr", {},
        element("th", { scope: "row" }, of),
        ...[count(figures.tokens), percent(figures.specialisation), figures.lift.toFixed(2), figures.specialist ? "yes" : ""]
          .map((text) => element("td", {}, text))));
      const head = ["Tokens of", "Tokens", "Share", "× chance", "Specialist"].map((text) => element("th", { scope: "col" }, text));
      const place = find("card");
      place.replaceChildren(
        element("h3", {}, `Expert ${expert} of ${component} layer ${layer}`),
        element("p", { class: "muted" }, `Chosen by ${count(card.activations)} of ${count(card.tokens)} tokens; ${percent(card.gate_share)} of the layer’s gate mass; trust ${card.trust.toFixed(2)}.`),
        element("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "By domain and modality" },
          element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...shares))),
      );
      if (card.top_tokens.length) {
        place.append(element("p", {}, "Chosen for the input tokens"), element("ul", { class: "tokens" },
          ...card.top_tokens.map((token) => element("li", { title: `${percent(token.specialisation, 0)} of ${count(token.occurrences)}` }, token.text ?? `id ${token.token_id}`))));
      }
      if (card.companions.length) {
        place.append(element("p", { class: "muted" }, `Chosen together with ${card.companions.map((other) => other.expert_id).join(", ")}.`));
      }
      place.hidden = false;
      place.focus();
      return "";
    });
  }

  async asked(meanwhile, work) {
    const status = find("profile-status");
    status.textContent = meanwhile;
    status.classList.remove("bad");
    try {
      status.textContent = await work();
    } catch (error) {
      status.textContent = error.message;
      status.classList.add("bad");
      if (error.status === 401) this.onLocked();
    }
  }
}

function choices(select, names) {
  const made = Object.entries(names).map(([one, tokens]) => element("option", { value: one }, `${one} (${count(tokens)})`));
  select.replaceChildren(element("option", { value: "" }, "all"), ...made);
}
