//! Constraints of new sequences.

use super::Engine;
use crate::error::StepError;
use crate::plan::StepPlan;
use kvasir_grammar::{Grammars, Guide};
use std::collections::HashMap;
use std::sync::Arc;

impl Engine {
    /// Lets sequences have constraints; without it they are refused.
    pub fn set_grammars(&mut self, grammars: Arc<Grammars>) {
        self.grammars = Some(grammars);
    }

    /// A guide for each start that has a constraint, by sequence id.
    pub(super) fn guides(&self, plan: &StepPlan) -> Result<HashMap<u64, Guide>, StepError> {
        let mut guides = HashMap::new();
        for start in &plan.starts {
            let Some(constraint) = &start.sampling.constraint else {
                continue;
            };
            let invalid = |remedy: String| StepError::InvalidStart {
                sequence_id: start.sequence_id,
                field: "constraint",
                value: "given".into(),
                remedy,
            };
            let grammars = self.grammars.as_ref();
            let grammars = grammars.ok_or_else(|| invalid("this engine has no tokenizer; leave it out".into()))?;
            let guide = grammars.guide(constraint, start.prompt_token_count as usize);
            guides.insert(start.sequence_id, guide.map_err(|error| invalid(error.to_string()))?);
        }
        Ok(guides)
    }
}
