//! The literal evaluator: policy semantics straight from the objects, slow and plain. Shares no code with the model,
//! the compiler or the dataplane, so that agreeing with it means something.
