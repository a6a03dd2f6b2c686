// What the page leaves out.
// What the server found wrong with a node's inputs is written under the node: the page itself shows a red frame and keeps the
// sentence behind two clicks, and who mistypes a camera path should read it where they typed. Nodes 2.0 are not painted on the
// canvas: there the sentence stays behind those clicks.
// A file in a folder has the separators of the system that a workflow was saved on: the list's own entry is chosen for it, before
// the page looks for what is missing.
// %date:yyyy-MM-dd% and %Node.input% in a file's name are filled in as for core's nodes, whose classes the page has a list of.
// While a run goes on, the node that samples has a gauge: what memory takes, what it would take at 16 bits per value, how far it is.
// Inputs that few people need are folded away in the classic canvas, too.
// Reports, comparisons and plans are cards, also out of the execution cache: card.js.
import { app } from '../../scripts/app.js'
import { prepareCard, showCard, showGauge } from './card.js'

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

// The card of a node that says what a run cost or will: how high it is with all that it shows, and what it says before a run.
const CARDS = {
  QVGCacheReport: [290, 'Memory, ratio and speed, after a run.'],
  QVGCompare: [420, 'How far the videos are apart, after a run.'],
  QVGPlan: [186, 'Press Run: it answers at once, without any file.'],
}

const MORE = '$$qvg-more'

// Nodes 2.0 folds inputs away that few people need, and has a line at the node's foot that shows them; the classic canvas shows all.
// There we do the same, with a button for a foot. What is connected is never hidden.
function foldAdvanced(node) {
  const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced)
  if (advanced.length < 2 || node.widgets.some((widget) => widget.name === MORE)) return
  const inNodes2 = () => !!window.LiteGraph?.vueNodesMode
  const hides = (thing, get) => Object.defineProperty(thing, 'hidden', { get, set: () => {}, configurable: true })
  for (const widget of advanced) hides(widget, () => !inNodes2() && !node.showAdvanced)
  const button = node.addWidget('button', MORE, null, () => {
    node.showAdvanced = !node.showAdvanced
    label(node)
    node.setSize([node.size[0], node.computeSize()[1]])
  })
  button.serialize = button.options.serialize = false
  hides(button, inNodes2)
  hides(button.options, inNodes2)
  label(node)
  node.setSize([node.size[0], node.computeSize()[1]])
}

// How many are folded away, and how many of them are not as in a new node.
function label(node) {
  const button = node.widgets?.find((widget) => widget.name === MORE)
  if (!button) return
  const folded = node.widgets.filter((widget) => widget.options?.advanced)
  const { required = {}, optional = {} } = node.constructor.nodeData?.input ?? {}
  const isChanged = ({ name, value }) => ((spec) => spec && 'default' in spec && spec.default !== value)({ ...required, ...optional }[name]?.[1])
  const changed = folded.filter(isChanged).length
  const hidden = `▸ ${folded.length} more` + (changed ? `, ${changed} of them changed` : '')
  button.label = node.showAdvanced ? '▾ fewer' : hidden
}

function showConnected(node) {
  const linked = (name) => node.inputs?.some((input) => input.widget?.name === name && input.link != null)
  if (node.widgets?.some((widget) => widget.options?.advanced && linked(widget.name))) node.showAdvanced = true
  label(node)
}

const NAME = 'qvg.texts'
// Of two copies of this pack both bring this file, and the page takes a name once.
const known = app.extensions?.some((extension) => extension.name === NAME)

if (!known) app.registerExtension({
  name: NAME,
  setup() {
    app.api.addEventListener('qvg.gauge', ({ detail }) => {
      const node = nodeOf(detail.node)
      if (node) showGauge(node, detail)
    })
    app.api.addEventListener('executed', ({ detail }) => {
      const node = nodeOf(detail.display_node ?? detail.node)
      const [card] = detail.output?.qvg_card ?? []
      if (node && card) showCard(node, card)
    })
  },
  loadedGraphNode(node) {
    if (!node.comfyClass?.startsWith('QVG')) return
    chooseListedFiles(node)
    showConnected(node)
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith('QVG')) return
    if (node.comfyClass === 'QVGSaveVideo') fillInName(node)
    foldAdvanced(node)
    if (node.comfyClass in CARDS) prepareCard(node, ...CARDS[node.comfyClass])
    const before = node.onDrawForeground
    node.onDrawForeground = function (context, ...rest) {
      before?.call(this, context, ...rest)
      paint(this, context)
    }
  },
})
