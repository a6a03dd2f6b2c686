// What this pack shows on a node: a gauge while a run goes on, and a card of three figures, a chart and details after it.
// Both are elements of the document, which the classic canvas and Nodes 2.0 show alike. Colours are the page's own theme's, light or
// dark; sizes can be read where a whole workflow is in sight, at 60 % zoom.

// ComfyUI shows a text of a running node in a widget of this name, which it makes where there is none: a box that cuts the text
// off. Where the gauge has the name, the text is the gauge's: its value, and what it says under the pointer.
const GAUGE = '$$node-text-preview'
const GAUGE_TYPE = 'qvg-gauge'
const CARD = '$$qvg-card'
const GAUGE_HEIGHT = 106
const CARD_WIDTH = 340
const BOX = `background:rgba(127,127,127,.12);color:var(--input-text,#ddd);border-radius:6px;overflow:hidden;
  box-sizing:border-box;height:100%;width:100%;display:flex;flex-direction:column;font:16px/1.25 sans-serif;text-align:left;`
const ROW = 'display:flex;justify-content:space-between;align-items:baseline;white-space:nowrap;gap:8px;'
const GAUGE_HTML = `
  <div style="${BOX}gap:6px;padding:8px 10px">
    <div style="${ROW}"><b data-part="held" style="font-size:28px"></b><span data-part="exact"></span></div>
    <div style="height:10px;border-radius:5px;background:var(--border-color,#555);flex:none">
      <div data-part="bar" style="height:10px;border-radius:5px;background:#1f9d66"></div></div>
    <div style="${ROW}"><span data-part="block"></span><span data-part="speed"></span><span data-part="left"></span></div>
  </div>`
const CARD_HTML = `
  <div style="${BOX}gap:4px;padding:8px 10px">
    <div data-part="figures" style="display:flex;gap:12px;flex:none"></div>
    <div data-part="sentence" style="flex:none;display:none;overflow-wrap:break-word"></div>
    <div data-part="charts" style="flex:1 1 0;min-height:0;display:flex;flex-direction:column"></div>
    <pre data-part="details" style="flex:1 1 0;min-height:0;display:none;overflow:auto;margin:0;white-space:pre-wrap;
      overflow-wrap:break-word;font:14px/1.35 sans-serif;user-select:text"></pre>
    <button data-part="more" style="flex:none;align-self:flex-start;display:none;background:none;border:0;padding:2px 0;
      color:inherit;opacity:.75;font:inherit;text-decoration:underline;cursor:pointer"></button>
  </div>`
// The same as in the pictures that a run makes; each reads on light and on dark ground.
const COLOURS = ['#3f86cc', '#1f9d66', '#d06f22', '#8d6bd2']

export function megabytes(bytes) {
  if (bytes >= 1e10) return `${(bytes / 1e9).toFixed(1)} GB`
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(1)} MB`
}

function duration(seconds) {
  return seconds < 100 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`
}

function part(box, name) {
  return box.querySelector(`[data-part=${name}]`)
}

function widgetOf(node, name, type, html, options) {
  const there = node.widgets?.find((widget) => widget.name === name)
  if (there?.type === type || !node.addDOMWidget) return there?.type === type ? there : undefined
  if (there) node.widgets.splice(node.widgets.indexOf(there), 1) && there.onRemove?.()
  const box = document.createElement('div')
  box.innerHTML = html
  const texts = { getValue: () => box.title, setValue: (text) => (box.title = text) }
  const widget = node.addDOMWidget(name, type, box, { serialize: false, hideOnZoom: false, ...texts, ...options })
  widget.serialize = false // in a saved workflow there is no run
  // A preview that came first takes all the room that is left; ours goes above it.
  const preview = node.widgets.findIndex((each) => each.name?.startsWith('$$canvas-image-preview'))
  if (preview > -1) {
    node.widgets.splice(node.widgets.indexOf(widget), 1)
    node.widgets.splice(preview, 0, widget)
  }
  return widget
}

// A node is never smaller than what it shows. ComfyUI asks for the height; the width is ours to keep.
function atLeast(node, width) {
  if (!node.qvgKeepsWidth) {
    node.qvgKeepsWidth = true
    const before = node.onResize
    node.onResize = function (size) {
      if (size[0] < width) size[0] = width
      return before?.call(this, size)
    }
  }
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], node.computeSize()[1])])
}

export function showGauge(node, told) {
  const height = () => GAUGE_HEIGHT
  const had = node.widgets?.length
  const box = widgetOf(node, GAUGE, GAUGE_TYPE, GAUGE_HTML, { getMinHeight: height, getMaxHeight: height })?.element
  if (!box) return
  if (node.widgets.length !== had) atLeast(node, CARD_WIDTH)
  const { block, blocks, cache_bytes: held, exact_bytes: exact, seconds_per_frame: each, seconds_left: left } = told
  const ratio = held && exact > 1.05 * held ? ` (${(exact / held).toFixed(1)}×)` : ''
  const texts = {
    held: megabytes(held),
    exact: exact ? `exact ${megabytes(exact)}${ratio}` : 'remembers nothing yet',
    block: `block ${block} of ${blocks}`,
    speed: `${each.toFixed(2)} s/frame`,
    left: block < blocks ? `${duration(left)} left` : `done in ${duration(told.seconds)}`,
  }
  for (const [name, text] of Object.entries(texts)) part(box, name).textContent = text
  part(box, 'bar').style.width = `${(100 * (exact ? Math.min(1, held / exact) : 0)).toFixed(1)}%`
}

// `height`: what all of it takes; `waits`: what is said before the first run.
export function prepareCard(node, height, waits) {
  const widget = widgetOf(node, CARD, 'qvg-card', CARD_HTML, { getMinHeight: () => height })
  if (!widget) return
  const box = widget.element
  const sentence = part(box, 'sentence')
  sentence.textContent = waits
  sentence.style.display = 'block'
  part(box, 'more').addEventListener('click', () => turn(box))
  new ResizeObserver(() => draw(box)).observe(part(box, 'charts'))
  // What the card draws, ComfyUI need not show as a picture too. It lets a node say so in Nodes 2.0 alone.
  node.hideOutputImages = true
  node.onDrawBackground = () => {}
  atLeast(node, CARD_WIDTH)
}

export function showCard(node, { figures, sentence, charts, details }) {
  const widget = node.widgets?.find((each) => each.name === CARD)
  if (!widget) return
  const box = widget.element
  part(box, 'figures').replaceChildren(
    ...figures.map(([value, label]) => {
      const figure = document.createElement('div')
      figure.style.cssText = 'flex:1 1 auto;min-width:0'
      const number = document.createElement('b')
      number.style.cssText = 'display:block;font-size:26px;line-height:1.1;white-space:nowrap'
      number.textContent = value
      const under = document.createElement('span')
      under.style.cssText = 'display:block;font-size:15px;line-height:1.15'
      under.textContent = label
      figure.append(number, under)
      return figure
    }),
  )
  part(box, 'sentence').textContent = sentence ?? ''
  part(box, 'sentence').style.display = sentence ? 'block' : 'none'
  part(box, 'details').textContent = details ?? ''
  box.charts = charts ?? []
  turn(box, false)
  draw(box)
}

// Details in place of the charts, and back: the node stays as large as it is.
function turn(box, open = part(box, 'details').style.display === 'none') {
  part(box, 'details').style.display = open ? 'block' : 'none'
  part(box, 'charts').style.display = open ? 'none' : 'flex'
  part(box, 'more').style.display = part(box, 'details').textContent ? 'block' : 'none'
  part(box, 'more').textContent = open ? 'Back' : 'Details'
  if (!open) draw(box)
}

function draw(box) {
  const place = part(box, 'charts')
  const { clientWidth: width, clientHeight: height } = place
  const charts = box.charts ?? []
  if (!charts.length || width < 40 || height < 40) return
  place.innerHTML = charts.map((chart) => svg(chart, width, Math.floor(height / charts.length))).join('')
}

const escaped = (text) => String(text).replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`)
const plain = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3))))

// Lines over frames from 0 up: title, names with their last values in the lines' colours, the highest value, the last frame.
function svg({ title, unit, curves }, width, height) {
  const highest = Math.max(1e-9, ...curves.flatMap(({ values }) => values))
  const last = Math.max(1, ...curves.map(({ values, frames }) => frames ?? values.length)) - 1
  const text = (x, y, words, more = '') =>
    `<text x="${x}" y="${y}" fill="currentColor" font-size="15" ${more}>${escaped(words)}</text>`
  const names = curves.map(({ name, values }) => `${name} ${plain(values.at(-1))}`)
  const perLine = names.join('   ').length * 8 < width ? names.length : 1
  const lines = Math.ceil(names.length / perLine)
  const [left, right, top, bottom] = [4, width - 4, 24 + 19 * lines, height - 20]
  let legend = ''
  names.forEach((name, index) => {
    const x = perLine === 1 ? 4 : 4 + names.slice(0, index).reduce((sum, each) => sum + each.length * 8 + 14, 0)
    const y = 34 + 19 * (perLine === 1 ? index : 0)
    legend += `<text x="${x}" y="${y}" fill="${COLOURS[curves[index].colour]}" font-size="15" font-weight="600">${escaped(name)}</text>`
  })
  const drawn = curves.map(({ values, colour }) => {
    const step = (right - left) / Math.max(1, values.length - 1)
    const points = values.map((value, i) => `${(left + i * step).toFixed(1)},${(bottom - ((bottom - top) * value) / highest).toFixed(1)}`)
    return `<polyline points="${points.join(' ')}" fill="none" stroke="${COLOURS[colour]}" stroke-width="2.5" stroke-linejoin="round"/>`
  })
  const rule = (y) => `<line x1="${left}" x2="${right}" y1="${y}" y2="${y}" stroke="currentColor" stroke-opacity=".25"/>`
  return `<svg width="${width}" height="${height}" style="display:block;flex:none" font-family="sans-serif">
    ${text(4, 15, title)}${text(right, 15, `up to ${plain(highest)} ${unit}`, 'text-anchor="end" opacity=".75"')}${legend}
    ${rule(top)}${rule(bottom)}${drawn.join('')}
    ${text(left, height - 4, '0', 'opacity=".75"')}
    ${text(right, height - 4, `frame ${last}`, 'text-anchor="end" opacity=".75"')}</svg>`
}
