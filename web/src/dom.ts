// Two hands for the DOM.

/** $ is the element with an id; the page has it, or is broken. */
export function $<T extends Element = HTMLElement>(id: string): T {
  const e = document.getElementById(id);
  if (!e) throw new Error(`page lacks #${id}`);
  return e as unknown as T;
}

/** write leaves the DOM alone where nothing changed, so that selections and screen readers stay undisturbed. */
export function write(e: Element, text: string): void {
  if (e.textContent !== text) e.textContent = text;
}
