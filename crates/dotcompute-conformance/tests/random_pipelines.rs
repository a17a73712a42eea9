//! Random graphs of connected kernels against a plain model: each message goes the way that the
//! graph says, through functions of which each makes none, one or two of it, and comes out at the
//! end of that way; those of one source in their order; and the books say so.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::collections::BTreeMap;
use std::time::Duration;

use dotcompute::{
    BoxError, Context, Handler, HandlerContext, KernelRef, Message, Runtime, Terminate,
};
use dotcompute_conformance::stage::{eventually, quiet, within};
use proptest::prelude::*;

/// A number from a source, the `place`th of it; `value` is what the stages made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    source: usize,
    place: u64,
    value: u64,
}

impl Message for Item {
    const TYPE_NAME: &'static str = "Item";
}

/// What a stage makes of an item.
#[derive(Clone, Copy, Debug)]
enum Work {
    Add(u64),
    Odd,
    Twice,
}

impl Work {
    fn of(self, item: Item) -> Vec<Item> {
        match self {
            Self::Add(number) => vec![Item { value: item.value + number, ..item }],
            Self::Odd if item.value % 2 == 1 => vec![item],
            Self::Odd => vec![],
            Self::Twice => vec![item, Item { value: item.value + 1, ..item }],
        }
    }
}

struct Works(Work);

impl Handler for Works {
    type In = Item;
    type Out = Item;

    fn handle(
        &mut self,
        item: &Item,
        context: &mut HandlerContext<Item>,
    ) -> Result<Option<Item>, BoxError> {
        self.0.of(*item).into_iter().for_each(|made| context.emit(made));
        Ok(None)
    }
}

async fn body(mut context: Context<Item, Item>, work: Work) -> Result<(), BoxError> {
    while let Ok(&item) = context.receive().await {
        for made in work.of(item) {
            context.reply(made).await?;
        }
    }
    Ok(())
}

#[derive(Clone, Debug)]
struct Stage {
    work: Work,
    threaded: bool,
    handler: bool,
    capacity: usize,
    /// The stage that it is connected to: one with a larger number, if any.
    next: usize,
    /// How many items are sent to it.
    items: u64,
}

fn stage() -> impl Strategy<Value = Stage> {
    let work = prop_oneof![(0..9u64).prop_map(Work::Add), Just(Work::Odd), Just(Work::Twice)];
    (work, any::<bool>(), any::<bool>(), 1..5usize, 1..5usize, 0..40u64).prop_map(
        |(work, threaded, handler, capacity, next, items)| Stage {
            work,
            threaded,
            handler,
            capacity,
            next,
            items,
        },
    )
}

/// By end and source, what comes out, in order; and what each stage is sent.
type Outcome = (BTreeMap<(usize, usize), Vec<Item>>, Vec<u64>);

fn model(stages: &[Stage]) -> Outcome {
    let (mut out, mut accepted) = (BTreeMap::<_, Vec<_>>::new(), vec![0; stages.len()]);
    for source in 0..stages.len() {
        for place in 0..stages[source].items {
            let (mut at, mut items) = (source, vec![Item { source, place, value: place }]);
            loop {
                accepted[at] += items.len() as u64;
                items = items.into_iter().flat_map(|item| stages[at].work.of(item)).collect();
                match at + stages[at].next {
                    next if next < stages.len() => at = next,
                    _ => break,
                }
            }
            if !items.is_empty() {
                out.entry((at, source)).or_default().extend(items);
            }
        }
    }
    (out, accepted)
}

fn run(stages: &[Stage], late: bool) {
    let (expected, accepted) = model(stages);
    let runtime = Runtime::builder().workers(2).build();
    let launch = |(index, stage): (usize, &Stage)| -> KernelRef<Item, Item> {
        let builder = runtime
            .kernel(format!("stage {index}"))
            .executor(if stage.threaded { "thread" } else { "async" })
            .capacity(stage.capacity)
            // Where it is connected late its replies find room until then.
            .reply_capacity(1 << 20);
        let work = stage.work;
        match stage.handler {
            true => builder.launch_handler(move || Works(work)).unwrap(),
            false => builder.launch(move |context| body(context, work)).unwrap(),
        }
    };
    let kernels: Vec<_> = stages.iter().enumerate().map(launch).collect();
    let connect = || {
        for (index, stage) in stages.iter().enumerate() {
            if let Some(next) = kernels.get(index + stage.next) {
                kernels[index].connect(next).unwrap();
            }
        }
    };
    if !late {
        connect();
    }
    kernels.iter().for_each(|kernel| kernel.activate().unwrap());
    std::thread::scope(|scope| {
        for (source, kernel) in kernels.iter().enumerate() {
            let items = stages[source].items;
            scope.spawn(move || {
                for place in 0..items {
                    kernel.send_blocking(Item { source, place, value: place }, None).unwrap();
                }
            });
        }
        if late {
            // In the midst of it.
            eventually(|| {
                kernels.iter().zip(stages).all(|(k, s)| k.books().accepted >= s.items / 2)
            });
            connect();
        }
        for end in (0..stages.len()).filter(|&i| i + stages[i].next >= stages.len()) {
            let count = expected.range((end, 0)..(end + 1, 0)).map(|(_, items)| items.len()).sum();
            let mut came = BTreeMap::<_, Vec<_>>::new();
            for _ in 0..count {
                let item = kernels[end].receive_blocking(None).unwrap().message;
                came.entry((end, item.source)).or_default().push(item);
            }
            let expected: BTreeMap<_, _> =
                expected.range((end, 0)..(end + 1, 0)).map(|(k, v)| (*k, v.clone())).collect();
            assert_eq!(came, expected);
        }
    });
    // By a drain the last replies are out.
    for kernel in &kernels {
        quiet(kernel);
        kernel.terminate_blocking(Terminate::drain().within(Duration::from_secs(20)));
    }
    for (index, kernel) in kernels.iter().enumerate() {
        let (books, replies) = (kernel.books(), kernel.reply_books());
        assert_eq!((books.accepted, books.processed), (accepted[index], accepted[index]));
        let connected = index + stages[index].next < stages.len();
        assert_eq!(replies.accepted, if connected { replies.forwarded } else { replies.processed });
    }
    assert_eq!(runtime.dead_letter_counts().total, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_random_graph_of_connected_kernels_does_what_a_plain_model_does(
        stages in prop::collection::vec(stage(), 1..9),
        late: bool,
    ) {
        within("a random pipeline", Duration::from_secs(60), move || run(&stages, late));
    }
}
