// What the page leaves out.
// What the server found wrong with a node's inputs is written under the node: the page itself shows a red frame and keeps the
// sentence behind two clicks, and who mistypes a camera path should read it where they typed. Nodes 2.0 are not painted on the
// canvas: there the sentence stays behind those clicks.
// A file in a folder has the separators of the system that a workflow was saved on: the list's own entry is chosen for it, before
// the page looks for what is missing.
// %date:yyyy-MM-dd% and %Node.input% in a file's name are filled in as for core's nodes, whose classes the page has a list of.
// While a run goes on, the node that samples has a gauge: what memory takes, what it would take at 16 bits per value, how far it is.
// A report that comes out of the execution cache shows its text too: the page is told of texts only while a node runs.
import { app } from '../../scripts/app.js'

const MARGIN = 8
const LINE = 15
const FONT = '12px sans-serif'

// The server knows a node inside of subgraph 5 as "5:3", and one there within another as "5:7:3".
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph
  let node
  for (const part of String(id).split(':')) {
    node = graph?.getNodeById(Number(part))
    graph = node?.subgraph
  }
  return node
}

// A check of ours: "path - part 1 of the camera path ...". A range is ComfyUI's: details "width", message "Value 850 smaller than ...".
function sentence(error) {
  const { input_name: name } = error.extra_info ?? {}
  if (error.details === name) return `${name}: ${error.message}`
  return error.details?.startsWith(`${name} - `) ? error.details.slice(name.length + 3) : error.details || error.message
}

function sentences(node) {
  const errors = app.extensionManager?.lastNodeErrors ?? app.lastNodeErrors ?? {}
  const ours = Object.entries(errors).filter(([id]) => nodeOf(id) === node)
  return [...new Set(ours.flatMap(([, found]) => found.errors ?? []).map(sentence))]
}

function chooseListedFiles(node) {
  const parts = (name) => name.split(/[\\/]+/).join('/')
  for (const widget of node.widgets ?? []) {
    const values = widget.type === 'combo' ? widget.options?.values : undefined
    if (!Array.isArray(values) || typeof widget.value !== 'string' || values.includes(widget.value)) continue
    const listed = values.find((each) => typeof each === 'string' && parts(each) === parts(widget.value))
    if (listed !== undefined) widget.value = listed
  }
}

function wrapped(context, text, width) {
  const lines = ['']
  for (const word of text.split(' ')) {
    const longer = `${lines.at(-1)} ${word}`.trim()
    if (context.measureText(longer).width <= width) lines[lines.length - 1] = longer
    else lines.push(word)
  }
  return lines
}

function paint(node, context) {
  const found = node.flags?.collapsed ? [] : sentences(node)
  if (!found.length) return
  context.save()
  context.font = FONT
  context.textAlign = 'left'
  context.textBaseline = 'top'
  const lines = found.flatMap((text) => wrapped(context, text, node.size[0] - 2 * MARGIN))
  context.fillStyle = '#5a1a1a'
  context.fillRect(0, node.size[1], node.size[0], lines.length * LINE + 2 * MARGIN)
  context.fillStyle = '#ffe3e3'
  lines.forEach((line, index) => context.fillText(line, MARGIN, node.size[1] + MARGIN + index * LINE))
  context.restore()
}

function fillInName(node) {
  const prefix = node.widgets?.find((widget) => widget.name === 'filename_prefix')
  const fill = window.comfyAPI?.utils?.applyTextReplacements
  if (prefix && fill) prefix.serializeValue = () => fill(app, prefix.value)
}

const GAUGE = '$$qvg-gauge'
const GAUGE_HEIGHT = 108
// Colours of the page's own theme, light or dark; sizes that can be read where a whole workflow is in sight.
const GAUGE_HTML = `
  <div style="display:flex;flex-direction:column;gap:6px;padding:8px 10px;border-radius:6px;overflow:hidden;
    background:var(--comfy-input-bg,#222);color:var(--input-text,#ddd);font:18px/1.2 sans-serif;box-sizing:border-box;height:100%">
    <div style="display:flex;justify-content:space-between;align-items:baseline;white-space:nowrap">
      <b data-part="held" style="font-size:28px"></b><span data-part="exact"></span></div>
    <div style="height:10px;border-radius:5px;background:var(--border-color,#555);flex:none">
      <div data-part="bar" style="height:10px;border-radius:5px;background:#2ca25f"></div></div>
    <div style="display:flex;justify-content:space-between;white-space:nowrap">
      <span data-part="block"></span><span data-part="speed"></span><span data-part="left"></span></div>
  </div>`

function megabytes(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(1)} MB`
}

function duration(seconds) {
  return seconds < 100 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`
}

function gaugeOf(node) {
  const there = node.widgets?.find((widget) => widget.name === GAUGE)
  if (there || !node.addDOMWidget) return there
  const box = document.createElement('div')
  box.innerHTML = GAUGE_HTML
  const height = () => GAUGE_HEIGHT
  const options = { serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height, getValue: () => '' }
  const widget = node.addDOMWidget(GAUGE, 'qvg-gauge', box, options)
  widget.serialize = false // in a saved workflow there is no run
  node.setSize([Math.max(node.size[0], 320), Math.max(node.size[1], node.computeSize()[1])])
  return widget
}

function showGauge({ node: id, block, blocks, cache_bytes: held, exact_bytes: exact, seconds_per_frame: each, seconds_left: left }) {
  const node = nodeOf(id)
  const box = node && gaugeOf(node)?.element
  if (!box) return
  const share = exact ? Math.min(1, held / exact) : 1
  const texts = {
    held: megabytes(held),
    exact: `exact ${megabytes(exact)}`,
    block: `block ${block} of ${blocks}`,
    speed: `${each.toFixed(2)} s/frame`,
    left: block < blocks ? `${duration(left)} left` : 'done',
  }
  for (const [part, text] of Object.entries(texts)) box.querySelector(`[data-part=${part}]`).textContent = text
  box.querySelector('[data-part=bar]').style.width = `${(100 * share).toFixed(1)}%`
}

const NAME = 'qvg.texts'
// Of two copies of this pack both bring this file, and the page takes a name once.
const known = app.extensions?.some((extension) => extension.name === NAME)

if (!known) app.registerExtension({
  name: NAME,
  setup() {
    app.api.addEventListener('qvg.gauge', ({ detail }) => showGauge(detail))
    app.api.addEventListener('executed', ({ detail }) => {
      const id = detail.display_node ?? detail.node
      const ours = nodeOf(id)?.comfyClass?.startsWith('QVG')
      const text = detail.output?.text?.[0]
      if (ours && text) app.api.dispatchCustomEvent('progress_text', { nodeId: id, text })
    })
  },
  loadedGraphNode(node) {
    if (node.comfyClass?.startsWith('QVG')) chooseListedFiles(node)
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith('QVG')) return
    if (node.comfyClass === 'QVGSaveVideo') fillInName(node)
    const before = node.onDrawForeground
    node.onDrawForeground = function (context, ...rest) {
      before?.call(this, context, ...rest)
      paint(this, context)
    }
  },
})
