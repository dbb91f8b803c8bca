//! `pangea models plan`: where a running node's pool would place a model, why, and the predicted speed.

use clap::Args;
use pangea_client::{ModelPlan, PlannedChain, PlannedStage};

use super::args::{JsonArgs, RpcArgs};
use super::failure::Failure;
use super::node_names::NodeNames;
use super::table::{Align, Table, shortened, three_digits};
use super::{print, print_json};
use pangea_units::{ByteSize, LayerRange};

const EXAMPLES: &str = "\
Tokens per second are predicted from the measured speed of each node and link.
Layers are shown as --layers takes them: the first and the last, from 0. With
--json their ranges are [first, end).

Examples:
  pangea models plan
  pangea models plan SmolLM2-135M-Instruct.Q4_1.gguf --rpc mac2.local:8080";

/// Show where the pool would place a model, and why
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct ModelsPlanArgs {
    /// Name of the model in requests [default: the only model of the pool]
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,
    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// Characters of a node's name in a chain.
const NAME_CHARS: usize = 16;

/// Characters of a chain in the table: what leaves the rest of 80 columns.
const CHAIN_CHARS: usize = 44;

pub(super) async fn run(args: ModelsPlanArgs) -> Result<(), Failure> {
    let plan = args.rpc.node().await?.plan_model(args.model.as_deref().unwrap_or_default()).await?;
    if args.json.json {
        return print_json(&plan);
    }
    print(&show(&plan))
}

fn show(plan: &ModelPlan) -> String {
    let mut text = format!(
        "{}: {} layers, {} of weights and {} for sessions\n\n",
        plan.model,
        plan.layers,
        ByteSize(plan.weight_bytes),
        ByteSize(plan.session_bytes)
    );
    let Some(best) = &plan.best else {
        text.push_str(&format!("No plan: {}.\n", plan.reason));
        return text + &current(plan);
    };
    text.push_str(&format!("Plan: {}.\n\n", plan.reason));
    let names = names(plan);
    let mut table = Table::new([
        ("", Align::Left),
        ("layers", Align::Left),
        ("decode tok/s", Align::Right),
        ("prompt tok/s", Align::Right),
    ]);
    let chains = std::iter::once(("best", best)).chain(plan.alternatives.iter().map(|other| ("or", other)));
    for (title, chain) in chains {
        table.row([
            title.to_owned(),
            shortened(&stages(chain, &names), CHAIN_CHARS),
            three_digits(chain.decode_tokens_per_s),
            three_digits(chain.prompt_tokens_per_s),
        ]);
    }
    text.push_str(&table.render());
    text.push_str("\nPredicted from measured speeds and links, for one stream and a long prompt.\n");
    text + &current(plan)
}

/// Line about the current placement.
fn current(plan: &ModelPlan) -> String {
    match &plan.current {
        Some(current) => {
            let state = if plan.ready { "ready" } else { "not ready yet" };
            format!("Now: {}; {state} (epoch {}).\n", stages(current, &names(plan)), plan.epoch)
        }
        None => "Now: not placed.\n".to_owned(),
    }
}

fn stages(chain: &PlannedChain, names: &NodeNames) -> String {
    let stage = |stage: &PlannedStage| format!("{} {}", names.label(&stage.peer), LayerRange::from(stage.layers));
    chain.stages.iter().map(stage).collect::<Vec<_>>().join(", ")
}

/// Labels of the nodes of all chains of a plan.
fn names(plan: &ModelPlan) -> NodeNames {
    let chains = plan.best.iter().chain(&plan.alternatives).chain(&plan.current);
    let stages = chains.flat_map(|chain| &chain.stages);
    NodeNames::new(stages.map(|stage| (stage.peer.as_str(), stage.name.as_str())), NAME_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_shown_with_reason_alternatives_and_current_placement() {
        let chain = |names: &[(&str, [u32; 2])], speed| PlannedChain {
            stages: names
                .iter()
                .map(|(name, layers)| PlannedStage {
                    peer: if name.is_empty() { "12D3KooWabcdefgh".to_owned() } else { format!("12D3KooW{name}xyz") },
                    name: (*name).to_owned(),
                    layers: *layers,
                })
                .collect(),
            decode_tokens_per_s: speed,
            prompt_tokens_per_s: 10.0 * speed,
        };
        let mut plan = ModelPlan {
            model: "smol".to_owned(),
            layers: 30,
            weight_bytes: 92 << 20,
            session_bytes: 45 << 20,
            best: Some(chain(&[("alpha", [0, 30])], 290.0)),
            reason: "alpha is the only node".to_owned(),
            alternatives: vec![chain(&[("alpha", [0, 20]), ("", [20, 30])], 201.5)],
            current: None,
            epoch: 0,
            ready: false,
        };
        let text = show(&plan);
        for part in ["smol: 30 layers, 92.0 MiB", "alpha 0-29", "290", "alpha 0-19, …abcdefgh 20-29", "Now: not placed"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        (plan.best, plan.current, plan.epoch) = (None, Some(chain(&[("beta", [0, 30])], 1.0)), 7);
        plan.reason = "1.00 GiB is missing".to_owned();
        let text = show(&plan);
        assert!(
            text.contains("No plan: 1.00 GiB is missing.") && text.contains("Now: beta 0-29; not ready yet (epoch 7)")
        );
    }

    #[test]
    fn nodes_with_one_name_get_different_labels() {
        let stage = |peer: &str, layers| PlannedStage { peer: peer.to_owned(), name: "vm".to_owned(), layers };
        let stages = vec![stage("12D3KooWabcdefg1", [0, 15]), stage("12D3KooWabcdefg2", [15, 30])];
        let chain = PlannedChain { stages, ..PlannedChain::default() };
        let plan = ModelPlan { best: Some(chain), reason: "two are faster".to_owned(), ..ModelPlan::default() };
        let text = show(&plan);
        assert!(text.contains("vm …efg1 0-14, vm …efg2 15-29"), "{text}");
    }
}
