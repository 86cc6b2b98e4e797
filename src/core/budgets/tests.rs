//! Tests of the budgets.

use super::*;
use crate::ids::SlotId;

const SECOND: u64 = 1_000_000_000;

fn payer(session: u32, source: u32) -> Payer {
    Payer { session: SessionId::new(session, SlotId(session)), source: SourceId(source) }
}

fn limits(session: Rates, source: Rates) -> Limits {
    Limits {
        budgets: BudgetLimits { session, source },
        subscriptions_per_session_max: 2,
        ..Limits::default()
    }
}

fn overspent(expense: Expense, owner: Owner) -> Result<(), Overspent> {
    Err(Overspent { expense, owner })
}

#[test]
fn a_request_is_paid_from_both_accounts_or_from_none() {
    let rates = |ticks, tick_bytes| Rates { ticks, tick_bytes, ..Rates::default() };
    let mut budgets = Budgets::new(&limits(rates(3, 0), rates(4, 1 << 20)));
    let tick = |bytes| [(Expense::Ticks, 1), (Expense::TickBytes, bytes)];
    for _ in 0..3 {
        assert_eq!(budgets.spend(payer(1, 7), &tick(1), SECOND), Ok(()));
    }
    assert_eq!(budgets.spend(payer(1, 7), &tick(1), SECOND), overspent(Expense::Ticks, Owner::Session));
    // Had the refused tick been paid by the source, there would be none left.
    assert_eq!(budgets.spend(payer(2, 7), &tick(1), SECOND), Ok(()));
    assert_eq!(budgets.spend(payer(2, 7), &tick(1), SECOND), overspent(Expense::Ticks, Owner::Source));
    assert_eq!(budgets.spend(payer(2, 8), &tick(1 << 20), SECOND), Ok(()));
    assert_eq!(budgets.spend(payer(2, 8), &tick(1), SECOND), overspent(Expense::TickBytes, Owner::Source));
    // Behind a trusted proxy, or of this machine.
    for n in 3..9 {
        assert_eq!(budgets.spend(payer(n, 0), &tick(1 << 20), SECOND), Ok(()));
    }
}

#[test]
fn a_session_may_subscribe_to_all_its_patterns_four_times_at_once_and_a_source_for_ten_seconds() {
    let rates = Rates { subscriptions: 1, history: 1, last_values: 1, ..Rates::default() };
    let mut budgets = Budgets::new(&limits(rates, Rates { history: 3, ..Rates::default() }));
    let live = subscription_costs(2, &StartPosition::Live);
    let resume = subscription_costs(1, &StartPosition::Resume);
    let latest = subscription_costs(1, &StartPosition::Latest);
    for _ in 0..4 {
        assert_eq!(budgets.spend(payer(1, 7), &live, SECOND), Ok(()));
    }
    assert_eq!(
        budgets.spend(payer(1, 7), &latest, SECOND),
        overspent(Expense::Subscriptions, Owner::Session)
    );
    let mut served = 0;
    for n in 0..100 {
        served += u32::from(budgets.spend(payer(2 + n, 7), &resume, SECOND).is_ok());
    }
    assert_eq!(served, 30);
    assert_eq!(budgets.spend(payer(200, 7), &latest, SECOND), Ok(()));
}

#[test]
fn publishing_is_free_by_default_and_every_other_budget_is_beyond_an_honest_client() {
    let defaults = Limits::default();
    let mut budgets = Budgets::new(&defaults);
    assert!(!budgets.limits_publishing());
    let most = defaults.subscriptions_per_session_max;
    for (n, from) in [StartPosition::Live, StartPosition::Latest, StartPosition::Resume].iter().enumerate() {
        let client = payer(n as u32, 7);
        let mut changes = || budgets.spend(client, &subscription_costs(most, from), SECOND);
        // It comes back with all it may hold, changes all, and replaces all.
        assert_eq!([(); 3].map(|()| changes()), [Ok(()); 3], "{from:?}");
    }
    let mut budgets = Budgets::new(&defaults);
    for n in 0..10_000 {
        let costs = subscription_costs(50, &StartPosition::Latest);
        assert_eq!(budgets.spend(payer(n, 7), &costs, SECOND), Ok(()), "10,000 clients behind one address");
    }
}

#[test]
fn a_session_that_is_refused_at_flood_rate_has_no_refusal_left() {
    let mut budgets = Budgets::new(&Limits::default());
    let session = payer(1, 0).session;
    let flood =
        |budgets: &mut Budgets, now| (0..5_000).take_while(|_| budgets.note_refusal(session, now)).count();
    assert_eq!(flood(&mut budgets, SECOND), REFUSALS_RATE as usize - 1);
    assert_eq!(flood(&mut budgets, SECOND + SECOND / 10), REFUSALS_RATE as usize / 10 - 1);
    budgets.forget(session);
    assert!(budgets.note_refusal(session, SECOND));
}

#[test]
fn new_limits_apply_to_old_accounts() {
    let rates = |ticks| Rates { ticks, ..Rates::default() };
    let mut budgets = Budgets::new(&limits(rates(0), rates(0)));
    let tick = [(Expense::Ticks, 1)];
    assert!(!budgets.limits_publishing());
    for source in [0, 7] {
        budgets.set_limits(&limits(rates(1), rates(0)));
        assert!(budgets.limits_publishing());
        assert_eq!(budgets.spend(payer(source, source), &tick, SECOND), Ok(()));
        assert!(budgets.spend(payer(source, source), &tick, SECOND).is_err());
        budgets.set_limits(&limits(rates(0), rates(0)));
        assert_eq!(budgets.spend(payer(source, source), &tick, SECOND), Ok(()));
    }
}

#[test]
fn each_refusal_names_its_limit_and_its_option_and_has_a_counter_of_its_own() {
    use Expense::*;
    let rates = Rates { ticks: 11, tick_bytes: 12, subscriptions: 13, history: 14, last_values: 15 };
    let limits = BudgetLimits { session: rates, source: rates };
    let wanted = [
        (Ticks, "11", "--publish-rate"),
        (TickBytes, "12", "--publish-bandwidth"),
        (Subscriptions, "13", "--subscribe-rate"),
        (History, "14", "--history-rate"),
        (LastValues, "15", "--last-values-rate"),
    ];
    let mut counters = Vec::new();
    for (expense, limit, option) in wanted {
        for (owner, suffix) in [(Owner::Session, ""), (Owner::Source, "-per-source")] {
            let overspent = Overspent { expense, owner };
            let text = overspent.text(&limits);
            assert!(text.contains(limit) && text.ends_with(&format!("({option}{suffix})")), "{text}");
            assert!(!counters.contains(&overspent.counter()));
            counters.push(overspent.counter());
        }
    }
}
