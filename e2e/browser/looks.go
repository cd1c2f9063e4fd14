package browser

// faint gives the texts of the page that are less than 4.5 times as bright as what is behind them, or the other way round
// (WCAG 2.2, 1.4.3), with the ratio.
const faint = `(() => {
  const channels = c => c.match(/[\d.]+/g).map(Number);
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const bright = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = channels(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
      if (c[3] !== 0) return null; // half of it shines through: nobody here may do that
    }
    return [255, 255, 255];
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; (n = walk.nextNode());) {
    const e = n.parentElement;
    if (!n.data.trim() || ['STYLE', 'OPTION'].includes(e.tagName) || !e.checkVisibility()) continue;
    const back = behind(e);
    if (!back) { found.push('what is behind ' + n.data.trim() + ' shines through'); continue; }
    const [a, b] = [bright(channels(getComputedStyle(e).color)), bright(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(n.data.trim().slice(0, 40) + ': ' + ratio.toFixed(2));
  }
  return found;
})()`

// background is the colour behind all of the page, as "rgb(1, 2, 3)".
const background = `getComputedStyle(document.body).backgroundColor`

// focused describes the element that has the focus: what it is, whether its outline is to be seen (drawn, and on the
// screen), and how much the outline stands out from the page.
const focused = `(() => {
  const e = document.activeElement;
  if (!e || e === document.body) return {what: ''};
  const s = getComputedStyle(e), box = e.getBoundingClientRect();
  return {
    what: e.tagName.toLowerCase() + ' ' + (e.name || e.innerText || e.getAttribute('aria-label') || e.id || '').trim().slice(0, 60),
    seen: s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2 && e.matches(':focus-visible')
      && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth && box.width > 0,
  };
})()`

// wide gives what sticks out of the page to the right: nobody should have to scroll sideways to read.
const wide = `(() => {
  const most = document.scrollingElement.clientWidth, found = [];
  if (document.scrollingElement.scrollWidth > most) found.push('the page: ' + document.scrollingElement.scrollWidth + ' of ' + most);
  for (const e of document.querySelectorAll('body *')) {
    const r = e.getBoundingClientRect();
    if (e.checkVisibility() && !e.matches('.skip') && r.right > most + 1 && !e.closest('.t')) found.push(e.tagName + ' ' + e.className + ': ' + r.right);
  }
  for (const t of document.querySelectorAll('.t')) { // on the smallest screens tables scroll, each by itself
    if (most >= 400 && t.scrollWidth > t.clientWidth + 1) found.push('a table: ' + t.scrollWidth + ' of ' + t.clientWidth);
  }
  return found;
})()`

// small gives what is to be hit by a finger and is smaller than 24 pixels in both directions without room around it
// (WCAG 2.2, 2.5.8; links in a sentence are exempt, and a row of a table is its link's room).
const small = `[...document.querySelectorAll('button, select, input')].filter(e => e.checkVisibility())
  .map(e => [e, e.getBoundingClientRect()]).filter(([, r]) => r.width < 24 || r.height < 24).map(([e, r]) => e.outerHTML.slice(0, 60) + ': ' + r.width + 'x' + r.height)`

// told is what the page's text is, as it is seen.
const told = `document.body.innerText`
