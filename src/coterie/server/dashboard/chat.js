// A conversation with the model, through the address that other clients use.

import { ask, events, Refused } from "./client.js";
import { bytes, count, counted, element, percent, rate } from "./figures.js";
import { accepted, attachment, kinds, MOST } from "./media.js";
import { Sound } from "./sound.js";

const find = (id) => document.getElementById(id);

export class Chat {
  constructor({ onLocked }) {
    this.onLocked = onLocked;
    this.history = [];
    this.attached = [];
    this.running = null;
    this.modalities = [];
    find("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    find("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        find("chat-form").requestSubmit();
      }
    });
    find("chat").addEventListener("keydown", (event) => event.key === "Escape" && this.cancel());
    find("cancel").addEventListener("click", () => this.cancel());
    find("chat-new").addEventListener("click", () => this.reset());
    find("attach").addEventListener("change", (event) => this.attach([...event.target.files]));
    find("prompt").addEventListener("paste", (event) => {
      if (event.clipboardData.files.length && this.modalities.length > 1) {
        event.preventDefault();
        this.attach([...event.clipboardData.files]);
      }
    });
  }

  know(model) {
    this.modalities = model.input_modalities;
    find("attach").accept = accepted(this.modalities);
    find("attach-part").hidden = this.modalities.length < 2;
    find("voice-part").hidden = !model.voices.length;
    const voices = model.voices.map((name) => element("option", { value: name }, name));
    find("chat-form").elements.voice.replaceChildren(element("option", { value: "" }, "none"), ...voices);
    find("attach-label").textContent = `Attach ${kinds(this.modalities)}…`;
    const words = model.can_chat
      ? "Ask the model something. The conversation stays in this page."
      : "This model has no chat template: it goes on with what you write. The conversation stays in this page.";
    find("chat-empty").firstElementChild.textContent = words;
  }

  async attach(files) {
    for (const file of files) {
      try {
        if (this.attached.length >= MOST) throw new Error(`A message has ${MOST} attachments at most.`);
        this.attached.push(await attachment(file, this.modalities));
        this.say(`${file.name} is attached.`);
      } catch (error) {
        this.say(error.message);
      }
    }
    find("attach").value = "";
    this.list();
  }

  list() {
    find("attached").hidden = !this.attached.length;
    find("attached").replaceChildren(...this.attached.map((one) => {
      const remove = element("button", { type: "button", class: "quiet", "aria-label": `Remove ${one.name}` }, "×");
      remove.addEventListener("click", () => {
        URL.revokeObjectURL(one.url);
        this.attached = this.attached.filter((other) => other !== one);
        this.list();
        find("attach").focus();
      });
      const sight = one.kind === "image" ? [element("img", { src: one.url, alt: "" })] : [];
      return element("li", {}, ...sight, element("span", {}, one.name), remove);
    }));
  }

  say(text) {
    find("chat-status").textContent = text;
  }

  cancel() {
    this.running?.abort();
  }

  reset() {
    this.cancel();
    this.history = [];
    for (const shown of find("messages").querySelectorAll("img, audio, video")) URL.revokeObjectURL(shown.src);
    find("messages").replaceChildren();
    find("chat-new").disabled = true;
    this.say("");
    find("prompt").focus();
  }

  request() {
    const fields = find("chat-form").elements;
    const body = {
      messages: [...this.history],
      stream: true,
      stream_options: { include_usage: true },
      coterie: { provenance: true },
    };
    if (fields.system.value.trim()) body.messages.unshift({ role: "system", content: fields.system.value });
    for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
      if (fields[name].value !== "") body[name] = Number(fields[name].value);
    }
    if (fields.voice.value) {
      body.modalities = ["text", "audio"];
      body.audio = { voice: fields.voice.value, format: "pcm16" };
    }
    return body;
  }

  async send() {
    const text = find("prompt").value;
    if (this.running || (!text.trim() && !this.attached.length)) return;
    const media = this.attached.splice(0);
    const content = media.length ? [...media.map((one) => one.part), ...(text ? [{ type: "text", text }] : [])] : text;
    this.history.push({ role: "user", content });
    this.write("user", text, media);
    find("prompt").value = "";
    this.list();
    const body = this.request();
    // A browser plays sound for somebody who has just done something, so the player is made now.
    const shown = new Answer(this.write("assistant", ""), body.audio ? new Sound() : null);
    this.running = new AbortController();
    this.busy(true);
    const begun = performance.now();
    const clock = setInterval(() => !shown.begun && this.say(`Waiting, ${Math.round((performance.now() - begun) / 1000)} s`), 1000);
    this.say("Waiting");
    try {
      const response = await ask("/v1/chat/completions", { body, signal: this.running.signal });
      for await (const piece of events(response)) {
        if (piece.error) throw new Refused(0, piece.error.message, piece.error.code);
        if (shown.take(piece)) this.say("Answering");
        this.follow();
      }
      this.say(shown.end());
    } catch (error) {
      const cancelled = error.name === "AbortError";
      shown.fail(cancelled ? null : error.message || "The connection to the server was lost.");
      this.say(cancelled ? "Cancelled" : "No whole answer");
      if (error.status === 401) this.onLocked();
    } finally {
      clearInterval(clock);
      this.running = null;
      this.busy(false);
    }
    if (shown.text) this.history.push({ role: "assistant", content: shown.text });
    else this.undo(text, media);
    this.follow();
  }

  /** Without an answer, what was asked is no part of the conversation: it goes back to where it was written. */
  undo(text, media) {
    this.history.pop();
    if (!find("prompt").value) find("prompt").value = text;
    this.attached = [...media, ...this.attached].slice(0, MOST);
    this.list();
  }

  busy(is) {
    find("send").disabled = is;
    find("cancel").hidden = !is;
    find("chat-new").disabled = false;
    if (!is && document.activeElement === document.body) find("prompt").focus();
  }

  write(role, text, media = []) {
    const said = element("p", { class: "said" }, text);
    const item = element("li", { class: `message ${role}` }, element("h3", {}, role === "user" ? "You" : "Model"), said);
    if (media.length) {
      item.append(element("div", { class: "media" }, ...media.map((one) => one.kind === "image"
        ? element("img", { src: one.url, alt: one.name })
        : element(one.kind, { src: one.url, controls: true, "aria-label": one.name }))));
    }
    find("messages").append(item);
    this.near = true;
    this.follow();
    return item;
  }

  /** Stays at the end, unless somebody has scrolled up to read. */
  follow() {
    const list = find("messages");
    if (list.scrollHeight - list.scrollTop - list.clientHeight < 120 || this.near) list.scrollTop = list.scrollHeight;
    this.near = false;
  }
}

class Answer {
  constructor(item, sound) {
    this.item = item;
    this.sound = sound;
    this.said = item.querySelector(".said");
    this.said.classList.add("waiting");
    this.text = "";
    this.begun = null;
    this.more = null;
    this.usage = null;
  }

  /** Takes a piece; returns whether it was the first with text. */
  take(piece) {
    const delta = piece.choices?.[0]?.delta ?? {};
    const content = delta.content || delta.audio?.transcript;
    const first = this.begun === null && Boolean(content || delta.reasoning_content);
    if (first) this.begun = performance.now();
    if (delta.reasoning_content) this.think(delta.reasoning_content);
    if (content) {
      this.text += content;
      this.said.append(content);
    }
    if (delta.audio?.data) this.sound?.take(delta.audio.data);
    for (const call of delta.tool_calls ?? []) this.said.append(`\n${call.function.name}(${call.function.arguments})`);
    if (piece.coterie) this.more = piece.coterie;
    if (piece.usage) this.usage = piece.usage;
    return first;
  }

  think(text) {
    if (!this.thought) {
      this.thought = element("p", { class: "said" });
      this.said.before(element("details", { open: true }, element("summary", {}, "Thinking"), this.thought));
    }
    this.thought.append(text);
  }

  end() {
    this.said.classList.remove("waiting");
    const seconds = (performance.now() - (this.begun ?? performance.now())) / 1000;
    const tokens = this.usage?.completion_tokens_details?.text_tokens ?? this.usage?.completion_tokens ?? 0;
    const words = [counted(tokens, "token")];
    if (tokens > 1 && seconds > 0 && !this.sound) words.push(`${rate((tokens - 1) / seconds)} tokens/s`);
    const took = this.more?.provenance;
    if (took) words.push(`hit rate ${percent(took.hit_rate)}`, `${bytes(took.bytes_read)} read`);
    if (took?.experts_absent) words.push(`${count(took.experts_absent)} choices of absent experts`);
    if (took?.experts_left_out) {
      words.push(`${count(took.experts_left_out)} experts left out (${bytes(took.bytes_not_read)} not read)`);
    }
    if (this.more && this.more.finish_reason !== "stop") words.push(`ended by ${this.more.finish_reason}`);
    if (this.more?.speech) words.push(`${rate(this.more.speech.seconds)} s of speech`);
    this.hear();
    this.item.append(element("p", { class: "meta" }, words.join(" · ")));
    return `Answered with ${words[0]}`;
  }

  /** What was spoken can be heard again. */
  hear({ silent = false } = {}) {
    this.sound?.end({ silent });
    const file = this.sound?.file();
    if (!file) return;
    const again = element("audio", { src: URL.createObjectURL(file), controls: true, "aria-label": "What the model said" });
    this.said.after(element("div", { class: "media" }, again));
  }

  fail(message) {
    this.said.classList.remove("waiting");
    this.hear({ silent: message === null });
    this.item.append(message === null
      ? element("p", { class: "meta" }, "cancelled")
      : element("p", { class: "error" }, message));
  }
}
