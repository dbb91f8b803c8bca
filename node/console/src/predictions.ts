// What the node predicted beside what happened, of the products and answers of this page. Pure.

export interface Prediction {
  unix_ms: number
  /** The product's shape, or the model. */
  what: string
  kind: 'product' | 'answer'
  /** Seconds of a product, tokens per second of an answer. */
  predicted: number
  measured: number
}

/** Predictions that are kept. */
export const PREDICTIONS = 50

export type PredictionAction = { type: 'prediction'; prediction: Prediction }

/** The latest first; what was not predicted says nothing. */
export function reducePredictions(state: Prediction[], { prediction }: PredictionAction): Prediction[] {
  if (!(prediction.predicted > 0 && prediction.measured > 0)) return state
  return [prediction, ...state].slice(0, PREDICTIONS)
}

/** How far off a prediction was: 1 is right, 2 is twice as slow as predicted. */
export function slowness({ kind, predicted, measured }: Prediction): number {
  return kind === 'product' ? measured / predicted : predicted / measured
}
