// What a node of this pack said last stands on it again after a reload: frontends save no text that a server sent.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const SAID = "SNOOPI said" // a property of the node, and so a part of the workflow
const LONGEST = 1000
const isOurs = (node) => /^(NASA|SNOOPI)/.test(node?.type)

function keep({ detail: { nodeId, text } }) {
  const node = app.graph.getNodeById(nodeId)
  if (!isOurs(node) || node.properties[SAID] === text) return
  node.properties[SAID] = text
  const tracker = app.extensionManager.workflow.activeWorkflow?.changeTracker
  if (tracker?.captureCanvasState) tracker.captureCanvasState()
  else tracker?.checkState() // as older frontends call it
}

/** As if the server sent it anew. Frontend 1.32 gives it to innerHTML, and a workflow may be from anybody. */
function sayAgain(node) {
  const text = node.properties?.[SAID]
  if (!isOurs(node) || typeof text !== "string") return
  const plain = text.slice(0, LONGEST).replaceAll("<", "‹").replaceAll(">", "›")
  api.dispatchCustomEvent("progress_text", { nodeId: String(node.id), text: plain })
}

app.registerExtension({
  name: "SNOOPI.LastText",
  setup() {
    api.addEventListener("progress_text", keep)
  },
  afterConfigureGraph() {
    setTimeout(() => app.graph.nodes.forEach(sayAgain)) // the first graph comes before the frontend listens
  },
})
